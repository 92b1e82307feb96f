"""Time of a training step on the CPU, ours beside timm's, in one run.

    python benchmarks/step.py                                  # about six minutes
    python benchmarks/step.py --tasks v2_s:64:16 --precision bf16

The same architecture, images and labels; channels_last; one thread. The two take turns, each
first in every other round, and the ratio is the median over rounds of timm's time by ours: over 1
means that ours is faster. Figures are of processor time, which a busy machine changes little. The
C library is told to keep freed memory: else both spend a tenth of a step on getting pages anew, how
many depends on who ran before, and the noise of it hides the difference.
"""

import argparse
import os
import statistics
import sys
import time
from importlib.metadata import version

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from step_peers import Step, Task, data_for, ours, timm

from pipeline.parallel.world import World, open_world

TASKS = ("v2_b0:96:16", "v2_b0:160:16", "v2_s:64:16", "v2_s:128:8")
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
"""glibc reads these when a process starts."""
TOLERANCE = 0.98
"""Repeated runs of one contestant against itself differ by up to this much."""


def main() -> int:
    """Run all tasks; returns 1 where ours is slower than tolerated and --strict is set."""
    options = _options()
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    world = open_world(60)
    device = world.device.type
    print(f"torch {torch.__version__}, timm {version('timm')}, one thread, {device}")
    print(f"{'model':8s} {'px':>4s} {'batch':>5s} {'':5s} {'ours ms':>9s} {'timm ms':>9s}  ratio")
    slower = 0
    try:
        for name in options.tasks:
            for precision in options.precision:
                model, px, batch = name.split(":")
                task = Task(model, int(px), int(batch), precision)
                slower += _report(task, world, options.rounds)
    finally:
        world.close()
    return 1 if slower and options.strict else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", default=TASKS, metavar="MODEL:PX:BATCH")
    add("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    add("--rounds", type=int, default=15, help="turns of each contestant (15)")
    add("--strict", action="store_true", help="exit code 1 where ours is slower")
    return parser.parse_args()


def _report(task: Task, world: World, rounds: int) -> bool:
    """Print a task's row and return whether ours is slower."""
    data = data_for(task, world.device)
    steps = {"ours": ours(task, data, world), "timm": timm(task, data, world.device)}
    times = _times(steps, rounds)
    ratios = [theirs / own for own, theirs in zip(times["ours"], times["timm"], strict=True)]
    ratio = statistics.median(ratios)
    own, theirs = (1000 * statistics.median(times[name]) for name in ("ours", "timm"))
    print(
        f"{task.model:8s} {task.px:4d} {task.batch:5d} {task.precision:5s} {own:9.1f} "
        f"{theirs:9.1f}  {ratio:.3f}  ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )
    return ratio < TOLERANCE


def _times(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return seconds of each turn, after two that are not kept."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name in sorted(steps, reverse=bool(number % 2)):
            started = time.process_time()
            steps[name]()
            if number >= 2:
                times[name].append(time.process_time() - started)
    return times


if __name__ == "__main__":
    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    sys.exit(main())
