"""What a checkpoint costs a training: the copy that it waits for, and the write behind its back.

    python benchmarks/checkpoint.py --gb 1 --folder runs
    python benchmarks/checkpoint.py --model v2_l --interval-s 300

Copy: the time that the training stands still, for a state of --gb gigabytes (or of --model:
weights, average and two slots of its optimizer). Write: until the checkpoint is committed, files
synced and their digests taken, while a thread computes matrix products as a training would;
`slowed` is what the write takes from them on the same cores. The share is of --interval-s, the time
between checkpoints.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.store import Store
from pipeline.checkpoint.writer import Writer
from pipeline.models.count import model_params
from pipeline.models.table import ModelSpec

COPIES = 4
"""Weights, their average, and two slots of RMSProp."""
TENSORS = 400
ROUNDS = 5


def main() -> None:
    """Measure and print."""
    options = _options()
    params = int(options.gb * 1e9 / 4 / COPIES)
    if options.model:
        params = model_params(ModelSpec.parse({"name": options.model}, "--model"), 1000)
    gb = params * 4 * COPIES / 1e9
    print(f"state of {gb:.2f} GB ({COPIES} x {params:,} numbers), torch {torch.__version__}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        copies, writes, slowed = _measure(Path(folder), params)
    copy_s, write_s = statistics.median(copies), statistics.median(writes)
    print(f"copy    {copy_s:7.3f} s  {copy_s / gb:6.3f} s/GB  (training waits)")
    print(f"write   {write_s:7.3f} s  {write_s / gb:6.3f} s/GB  (in the background)")
    print(f"slowed  {100 * (statistics.median(slowed) - 1):6.1f} %  of a step's time while writing")
    lost_s = copy_s + write_s * max(statistics.median(slowed) - 1, 0)
    share = lost_s / options.interval_s
    print(f"share   {100 * share:6.2f} %  of {options.interval_s:.0f} s between checkpoints")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--gb", type=float, default=1.0, help="size of the state (1)")
    add("--model", help="take the state of this model of the table instead")
    add("--folder", type=Path, default=Path(), help="file system to write to (this folder)")
    add("--interval-s", type=float, default=300, help="seconds between checkpoints (300)")
    return parser.parse_args()


def _measure(folder: Path, params: int) -> tuple[list[float], list[float], list[float]]:
    """Return seconds of copies and writes, and how much longer a product takes meanwhile."""
    writer = Writer(Store(folder, keep=1, fence=lambda: None), print)
    state = _state(params)
    copies, writes, slowed = [], [], []
    for step in range(1, ROUNDS + 2):
        state.step = step
        quiet = _product_s(lambda: False)
        started = time.perf_counter()
        writer.save(state, {})
        copied = time.perf_counter()
        busy = _product_s(_alive("checkpoint"))
        assert writer.wait()
        if step > 1:  # the first one touches its memory for the first time
            copies.append(copied - started)
            writes.append(time.perf_counter() - copied)
            slowed.append(busy / quiet)
    return copies, writes, slowed


def _state(params: int) -> TrainState:
    """Return a state whose parts hold `params` numbers each; the slots hold twice as many."""
    size = params // TENSORS

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}{number}": torch.randn(size) for number in range(TENSORS)}

    slots = part("square_avg/") | part("momentum_buffer/")
    return TrainState(0, part(""), {"bn": torch.zeros(1)}, part(""), slots)


def _alive(name: str) -> Callable[[], bool]:
    return lambda: any(thread.name == name for thread in threading.enumerate())


def _product_s(goes_on: Callable[[], bool]) -> float:
    """Return the median time of a matrix product; at least twenty, more while `goes_on`."""
    factor = torch.randn(512, 512)
    times: list[float] = []
    while len(times) < 20 or goes_on():
        started = time.perf_counter()
        torch.mm(factor, factor)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
