"""Training speed on a GPU: ours beside timm's, each stage size, the schedule, and with the loader.

    python benchmarks/gpu_train.py                        # all parts; about eight minutes on a H200
    python benchmarks/gpu_train.py --parts rate stages --models v2_s --px 128 300
    python benchmarks/gpu_train.py --parts loader --shards data/imagenet1k

rate      the card's own bf16 matrix products: what the others are a share of
stages    images/s in bf16 of S, M and L at the sizes of their released stages: ours and timm's,
          each with and without compile, in turns; memory; share of the rate (6 FLOP a MAC)
schedule  from these: 350 epochs of progressive S beside 350 epochs at its last size
loader    steps fed from shards by the loader's processes: images/s and the wait for data

Without a GPU it says so and measures nothing. Figures are medians.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from step_peers import CLASSES, Step, Task, data_for, ours, recipe_for, timm

from pipeline.models.count import macs
from pipeline.models.table import TABLE
from pipeline.parallel.world import World, open_world

SIZES = {"v2_s": (171, 214, 257, 300), "v2_m": (192, 256, 320, 384), "v2_l": (192, 256, 320, 384)}
BATCH = {"v2_s": 256, "v2_m": 128, "v2_l": 64}
"""The largest that all contestants hold on 80 GB at the last size."""
MODES = {"plain": "", "compiled": "default", "graphs": "reduce-overhead"}
EPOCHS, IMAGES = 350, 1_281_167
FLOP_PER_MAC = 2 * 3  # forward, and twice as much backward
WARM, TIMED = 4, 10

Rates = dict[tuple[str, int], float]
"""Images/s of the fastest setting of ours, by model and size."""


class Measured(NamedTuple):
    """A contestant at a size."""

    images_s: float
    gib: float


def main() -> int:
    """Run the parts that were asked for."""
    options = _options()
    if not torch.cuda.is_available():
        print("NO GPU HERE: nothing was measured; benchmarks/step.py compares steps on a CPU")
        return 0
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    world = open_world(600)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, channels_last")
    try:
        rate = card_rate(world.device)
        print(f"rate: {rate / 1e12:.0f} TFLOP/s of bf16 matrix products")
        rates: Rates = {}
        if "stages" in options.parts or "schedule" in options.parts:
            rates = stages(options, world, rate)
        if "schedule" in options.parts:
            schedule(options, rates)
        if "loader" in options.parts:
            loader(options, world)
    finally:
        world.close()
    return 0


def _options() -> argparse.Namespace:
    parts = ["rate", "stages", "schedule", "loader"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=parts, default=parts)
    add("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    add("--px", type=int, nargs="+", help="instead of the released sizes")
    add("--batch", type=int, help="images of a micro-batch (S 256, M 128, L 64)")
    add("--modes", nargs="+", choices=list(MODES), default=["plain", "compiled"])
    add("--shards", type=Path, help="folder of shards for the loader's part")
    add("--workers", type=int, default=15, help="of the loader (15)")
    add("--seconds", type=float, default=20.0, help="of each size in the loader's part (20)")
    return parser.parse_args()


def card_rate(device: torch.device) -> float:
    """Return the FLOP/s of large bf16 matrix products, the best of several."""
    size = 8192
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)

    def work() -> None:
        for _ in range(10):
            torch.matmul(matrix, matrix)

    return 10 * 2 * size**3 / min(_timed(work, 8)[2:])


def stages(options: argparse.Namespace, world: World, rate: float) -> Rates:
    """Print a row for each model, size and contestant; return our fastest."""
    best: Rates = {}
    print(f"{'':5s} {'px':>4s} {'':14s} {'images/s':>9s} {'GiB':>6s} {'of rate':>8s}")
    for model in options.models:
        for px in options.px or SIZES[model]:
            task = Task(model, px, options.batch or BATCH[model], "bf16")
            found = dict(_contest(task, options.modes, world))
            for name, (images_s, gib) in found.items():
                share = images_s * FLOP_PER_MAC * macs(TABLE[model], px, CLASSES) / rate
                print(
                    f"{model:5s} {px:4d} {name:14s} {images_s:9.0f} {gib:6.1f} {share:8.1%}",
                    flush=True,
                )
            own, theirs = (_fastest(found, who) for who in ("ours", "timm"))
            best[model, px] = own
            if own and theirs:
                print(f"{model:5s} {px:4d} ours is {own / theirs:.2f} times timm's best")
    return best


def _fastest(found: dict[str, Measured], who: str) -> float:
    return max((row.images_s for name, row in found.items() if name.startswith(who)), default=0.0)


def _contest(task: Task, modes: list[str], world: World) -> Iterator[tuple[str, Measured]]:
    """Measure each contestant twice, in turns of this order and its reverse; yield its better.

    One at a time holds memory, so that each may have the whole card.
    """
    names = [f"{who} {mode}" for who in ("ours", "timm") for mode in modes]
    turns: dict[str, list[Measured]] = {name: [] for name in names}
    for name in names + names[::-1]:
        who, mode = name.split(" ", 1)
        try:
            turns[name].append(_measure(who, task._replace(compiled=MODES[mode]), world))
        except torch.OutOfMemoryError:
            print(f"{task.model:5s} {task.px:4d} {name:14s} does not fit with {task.batch} images")
        _clean()
    for name, rows in turns.items():
        if rows:
            yield name, max(rows)


def _measure(who: str, task: Task, world: World) -> Measured:
    data = data_for(task, world.device)
    torch.cuda.reset_peak_memory_stats()
    if who == "ours":
        step = ours(task, data, world, cudnn_benchmark=True)
    else:
        step = timm(task, data, world.device)
    took_s = statistics.median(_timed(step, WARM + TIMED)[WARM:])
    return Measured(task.batch / took_s, torch.cuda.max_memory_allocated() / 2**30)


def schedule(options: argparse.Namespace, rates: Rates) -> None:
    """Print hours of 350 epochs, progressive and at the last size, on this one card."""
    for model in options.models:
        sizes = options.px or SIZES[model]
        if any(not rates.get((model, px)) for px in sizes):
            print(f"schedule: {model} lacks a size, no hours")
            continue
        hours = [EPOCHS / len(sizes) * IMAGES / rates[model, px] / 3600 for px in sizes]
        fixed = len(sizes) * hours[-1]
        print(
            f"schedule: {model} {EPOCHS} epochs, {' '.join(f'{px}' for px in sizes)} px: "
            f"{sum(hours):.1f} h; {sizes[-1]} px throughout: {fixed:.1f} h; "
            f"{sum(hours) / fixed:.2f} of the time"
        )


def loader(options: argparse.Namespace, world: World) -> None:
    """Train S from shards for some seconds at each size; print images/s and the wait for data."""
    if options.shards is None:
        print("loader: not measured; give a folder of shards with --shards")
        return
    for px in options.px or SIZES["v2_s"]:
        steps, images, took_s, waited_s = _fed(options, world, px)
        print(
            f"loader: v2_s {px} px, {options.workers} workers: {images / took_s:.0f} images/s, "
            f"{steps} steps, waited for data {waited_s / took_s:.1%} of the time",
            flush=True,
        )
        _clean()


def _fed(options: argparse.Namespace, world: World, px: int) -> tuple[int, int, float, float]:
    """Return steps, images, seconds and seconds of waiting of a timed stretch."""
    from pipeline.data.index import SplitIndex
    from pipeline.data.loader import TrainLoader
    from pipeline.data.loading import LoaderSpec
    from pipeline.data.manifest import load_manifest
    from pipeline.data.order import Order
    from pipeline.data.transfer import DeviceLoader
    from pipeline.jobs.stepper import build_stepper
    from pipeline.models.network import build_network
    from pipeline.plan.draws import Stream, keyed

    manifest = load_manifest(options.shards)
    task = Task("v2_s", px, options.batch or BATCH["v2_s"], "bf16", MODES[options.modes[-1]])
    recipe = recipe_for(task, cudnn_benchmark=True)
    plan = recipe.plan(1000 * task.batch)
    spec = LoaderSpec(workers=options.workers, lanes=64)
    index = SplitIndex(options.shards, manifest, "train")
    order = Order(len(index), 0, spec.lanes, spec.window)
    on_host = TrainLoader(index, order, plan, task.batch, 0, 1, recipe.augment, 0, spec)
    fed = DeviceLoader(on_host, world.device)
    model = build_network(recipe.model, manifest.num_classes, keyed(Stream.WEIGHTS, 0))
    stepper = build_stepper(recipe, manifest.num_classes, world, model)
    stepper.warm_up(px, task.batch)
    counted, waited_s, started = -WARM, 0.0, 0.0
    try:
        for number, batches in enumerate(fed.steps(0)):
            stepper.run(batches, plan.at(number))
            counted += 1
            if counted == 0:
                torch.cuda.synchronize()
                started = time.perf_counter()
            elif counted > 0:
                waited_s += fed.wait_s
                if time.perf_counter() - started > options.seconds:
                    break
        torch.cuda.synchronize()
        return counted, counted * task.batch, time.perf_counter() - started, waited_s
    finally:
        fed.close()


def _timed(work: Step, turns: int) -> list[float]:
    times = []
    for _ in range(turns):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return times


def _clean() -> None:
    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    raise SystemExit(main())
