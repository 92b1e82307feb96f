"""What a checkpoint costs a training: what it waits for, and the write behind its back.

    python benchmarks/checkpoint.py                                   # v2_m, under two minutes
    python benchmarks/checkpoint.py --model v2_l --interval-s 300 --folder runs

The state is the model's of the table: weights, buffers, average and two slots of its optimizer.
`checks` (no number infinite, replicas alike) and `copy` have the training stand still; `first` is
the first copy of an attempt, which asks for its memory. `write` runs in the background until files
are synced and digests taken. Seconds are of the clock and of all threads' processor time. The share
is of --interval-s between checkpoints. Exit code 1 where a copy takes more than 0.5 s per GB (its
processor time, and its fastest by the clock), or checks and copy more than 1 % of the interval.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.store import Store
from pipeline.checkpoint.writer import Writer
from pipeline.engine.replicas import checksums, first_not_finite
from pipeline.models.network import build_network
from pipeline.models.table import ModelSpec
from pipeline.parallel.world import World
from pipeline.plan.draws import Stream, keyed

COPY_S_PER_GB, SHARE = 0.5, 0.01
CLASSES = 1000


class Cost(NamedTuple):
    """Seconds by the clock and of the processor, of all threads of this process."""

    wall_s: float
    cpu_s: float


class Figures(NamedTuple):
    """What the rounds took; the first copy is apart."""

    first: Cost
    checks: list[Cost]
    copies: list[Cost]
    writes: list[Cost]


def main() -> int:
    """Measure and print; returns 1 where a goal is missed."""
    options = _options()
    world = World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    state = _state(options.model, world.device)
    gb = sum(t.nbytes for part in state.tensors().values() for t in part.values()) / 1e9
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    host = f"{threads} threads, {cores} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{options.model}: {gb:.2f} GB on {world.device}, {host}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = _measure(Path(folder), state, world, options.rounds)
    _line("first", [found.first], gb)
    for name in ("checks", "copies", "writes"):
        _line(name, getattr(found, name), gb)
    waits_s = _median(found.checks).wall_s + _median(found.copies).wall_s
    share, interval_s = waits_s / options.interval_s, options.interval_s
    stolen = _median(found.writes).cpu_s / cores / interval_s
    print(f"share   {share:7.2%} of {interval_s:.0f} s: the training stands still")
    print(f"        {stolen:7.2%} more where it uses all {cores} cores: the write's processor time")
    copy_s = max(_median(found.copies).cpu_s, min(cost.wall_s for cost in found.copies))
    return int(copy_s / gb > COPY_S_PER_GB or share > SHARE)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="v2_m", help="of the table in pipeline/models (v2_m)")
    add("--folder", type=Path, default=Path(), help="file system to write to (this folder)")
    add("--interval-s", type=float, default=300, help="seconds between checkpoints (300)")
    add("--rounds", type=int, default=5)
    return parser.parse_args()


def _state(model: str, device: torch.device) -> TrainState:
    """Return the state of a training as the loop captures it: tensors in the model's own layout."""
    spec = ModelSpec.parse({"name": model}, "--model")
    network = build_network(spec, CLASSES, keyed(Stream.WEIGHTS, 0))
    network = network.to(device).to(memory_format=torch.channels_last)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    everything = {name: value.detach() for name, value in network.state_dict().items()}
    slots = {f"{slot}/{name}": value.clone() for slot in "ab" for name, value in weights.items()}
    return TrainState(
        step=0,
        weights=weights,
        buffers={name: value for name, value in everything.items() if name not in weights},
        ema={name: value.clone() for name, value in everything.items()},
        slots=slots,
    )


def _measure(folder: Path, state: TrainState, world: World, rounds: int) -> Figures:
    writer = Writer(Store(folder, keep=1, fence=lambda: None), print)
    costs: dict[str, list[Cost]] = {"checks": [], "copies": [], "writes": []}
    for state.step in range(1, rounds + 2):
        costs["checks"].append(_cost(partial(_check, state, world)))
        costs["copies"].append(_cost(partial(writer.save, state, {})))
        costs["writes"].append(_cost(writer.wait))
    first = costs["copies"][0]
    return Figures(first, *(found[1:] for found in costs.values()))


def _check(state: TrainState, world: World) -> None:
    """Look at the state as the loop does before it saves."""
    tensors: list[Tensor] = [t for part in state.tensors().values() for t in part.values()]
    checksums(tensors, world.device).tolist()
    assert first_not_finite(state, world) is None


def _cost(work: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def _median(costs: list[Cost]) -> Cost:
    return Cost(*map(statistics.median, zip(*costs, strict=True)))


def _line(name: str, costs: list[Cost], gb: float) -> None:
    middle, walls = _median(costs), [cost.wall_s / gb for cost in costs]
    print(
        f"{name:<7} {middle.wall_s / gb:7.3f} s/GB by the clock "
        f"({min(walls):.3f} to {max(walls):.3f}), {middle.cpu_s / gb:.3f} s/GB of the processor"
    )


if __name__ == "__main__":
    sys.exit(main())
