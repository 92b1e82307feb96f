"""Progressive sizes with adaptive regularisation against a fixed size, on CIFAR-10's real images.

    python -m data_prep build cifar10-jpeg.tar.gz data/cifar10 --split train=train eval=test
    python benchmarks/progressive.py --epochs 8 --seeds 0 1 2    # about an hour and a half

Three ways to train the same network for the same number of images, one process with one thread
each, one after the other: as configs/cifar10.yaml says; at its last size throughout, regularised
alike stage by stage; at its last size with the last stage's regularisation throughout. What is
finished is kept in --runs, so a second call goes on. Time is processor time of the whole training
with its loader, start and final evaluation, which a busy machine changes little.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CONFIG = "configs/cifar10.yaml"
LAST = "{kind: fixed, px: 32, randaugment: 2, dropout: 0.1, micro_batches: 1}"
ARMS = {
    "progressive, adaptive": ["stages.micro_batches=1"],
    "fixed size, adaptive": ["stages.micro_batches=1", "stages.px=[32,32]"],
    "fixed size, constant": [f"stages={LAST}"],
}


class Result(NamedTuple):
    """What a training came to: fraction of test images right, seconds of processor time."""

    top1: float
    cpu_s: float


def main() -> None:
    """Train what is missing and print the table."""
    options = _options()
    results: dict[str, list[Result]] = {arm: [] for arm in options.arms}
    for seed in options.seeds:
        for arm in options.arms:
            result = _result(arm, seed, options)
            results[arm].append(result)
            line = f"seed {seed}, {arm}: {100 * result.top1:.2f} % after {result.cpu_s:.0f} s"
            print(line, file=sys.stderr, flush=True)
    print("\n".join(_table(results)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="data/cifar10", help="the shards (data/cifar10)")
    add("--runs", type=Path, default=Path("runs/progressive"), help="where runs are kept")
    add("--epochs", type=int, default=8, help="length of each training (8)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which ways (all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser.parse_args()


def _result(arm: str, seed: int, options: argparse.Namespace) -> Result:
    """Return what is recorded of this training, after doing it where nothing is."""
    name = f"{arm.replace(', ', '-').replace(' ', '-')}-{options.epochs}-epochs-seed-{seed}"
    record = options.runs / f"{name}.json"
    if not record.is_file():
        settings = (
            *(f"name={name}", f"seed={seed}", f"runs={options.runs}", f"data.path={options.data}"),
            *(f"length.epochs={options.epochs}", "evaluate.every_percent=100"),
            *("tracking.enabled=false", "checkpoint.every_percent=50"),
        )
        command = [sys.executable, "-m", "pipeline", "train", CONFIG, *settings, *ARMS[arm]]
        before = _cpu_s()
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        top1 = json.loads((options.runs / name / "evaluation.json").read_text())["top1"]
        record.write_text(json.dumps(Result(top1, _cpu_s() - before)._asdict()))
    return Result(**json.loads(record.read_text()))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _table(results: dict[str, list[Result]]) -> list[str]:
    """Return the lines of a Markdown table; time as a share of the slowest way's."""
    longest = max(statistics.mean(r.cpu_s for r in some) for some in results.values())
    lines = ["| training | top-1, % | mean ± deviation | processor time, s | share |"]
    lines.append("|---|---|---|---|---|")
    for arm, some in results.items():
        top1 = [100 * result.top1 for result in some]
        cpu_s = statistics.mean(result.cpu_s for result in some)
        spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
        each = ", ".join(f"{value:.2f}" for value in top1)
        mean = f"{statistics.mean(top1):.2f} ± {spread:.2f}"
        lines.append(f"| {arm} | {each} | {mean} | {cpu_s:.0f} | {cpu_s / longest:.2f} |")
    return lines


if __name__ == "__main__":
    main()
