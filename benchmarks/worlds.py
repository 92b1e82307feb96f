"""Whether 1, 2 and 4 ranks, and a run whose number of ranks changes, train the same network.

    python -m benchmarks.worlds                          # under four minutes
    python -m benchmarks.worlds --steps 300

The demo's network at a tenth of its rate, where rounding does not grow, with mixup and dropout.
The changing run is stopped twice by a signal (2 ranks, then 4, then 1). Against the run on one
rank: whether every step had the same samples (ids by micro-batch), the largest difference of the
loss over the first 50 steps and over all, and how the averaged weights score in the end.
Exit code 1 where ids differ, a loss of the first 50 steps is off by more than 1e-5, or the averaged
weights are further apart than one image in 200 of top-1 or 1e-3 of loss.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.run.folder import DONE, SAVED, RunFolder
from pipeline.tracking.events import history
from tests.soak.cluster import REPO
from tests.soak.compare import Ids, different_ids, ids_by_step
from tests.soak.training import make_data

FIRST, LOSS_LIMIT = 50, 1e-5
TOP1_LIMIT, EMA_LOSS_LIMIT = 1 / 200, 1e-3
CHANGING = (2, 4, 1)


@dataclass(frozen=True)
class Trained:
    """What a run recorded; `ids` of all its attempts."""

    name: str
    losses: dict[int, float]
    ids: Ids
    top1: float
    ema_loss: float


def main() -> int:
    """Train, compare and print; returns 1 where a figure is over its limit."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        data = Path(options.data) if options.data else make_data(base)
        one = _train(base, data, options.steps, (1,))
        others = [_train(base, data, options.steps, worlds) for worlds in ((2,), (4,), CHANGING)]
    print(f"{options.steps} steps; the averaged weights after the last one: top-1 and loss")
    _line("ranks", "ids", f"loss, first {FIRST}", "loss, all", "top-1", "loss")
    _line(one.name, "", "", "", f"{one.top1:.4f}", f"{one.ema_loss:.6f}")
    bad = [other.name for other in others if _compare(one, other)]
    return int(bool(bad))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="shards of the digits (made anew where not given)")
    add("--steps", type=int, default=150, help="of each training (150)")
    return parser.parse_args()


def _train(base: Path, data: Path, steps: int, worlds: tuple[int, ...]) -> Trained:
    """Train on each number of ranks in turn, stopped by a signal in between."""
    name = "-".join(map(str, worlds))
    folder, ids = RunFolder(base / "runs" / f"ranks-{name}"), base / "ids" / name
    stops = [FIRST // 2 + 1, max(FIRST - 10, steps // 2 + 1)][: len(worlds) - 1]
    faults = json.dumps([{"kind": "usr2", "step": step} for step in stops])
    for number, world in enumerate(worlds):
        started_s = time.monotonic()
        code = _run(base, _command(folder, data, steps, world), _environment(ids, faults))
        wanted = SAVED if number < len(stops) else DONE
        if code != wanted:
            sys.exit(f"{folder.path}: ended with {code}\n{(base / 'log').read_text()[-3000:]}")
        took_s = time.monotonic() - started_s
        print(f"{name}: {world} ranks took {took_s:.0f} s", file=sys.stderr, flush=True)
    series = history(folder.spool)
    losses = {point.step: point.value for point in series["train/loss"]}
    assert len(losses) == steps, f"{folder.path}: {len(losses)} losses in {steps} steps"
    last = (series["eval/top1"][-1].value, series["eval/loss"][-1].value)
    return Trained(" > ".join(map(str, worlds)), losses, ids_by_step(ids), *last)


def _command(folder: RunFolder, data: Path, steps: int, world: int) -> list[str]:
    settings = (
        *(f"name={folder.path.name}", f"runs={folder.path.parent}", f"data={data}"),
        *(f"length={{steps: {steps}}}", "lr.warmup_epochs=null", "lr.warmup_steps=10"),
        *("lr.peak=0.002", "batch.global_size=128", "ema.decay=0.95", "stages.px=[16, 24]"),
        *("stages.mixup=[0.1, 0.2]", "stages.dropout=[0.1, 0.2]", "tracking.enabled=false"),
        *(f"checkpoint={{every_steps: {steps}}}", f"evaluate={{every_steps: {steps}}}"),
    )
    launch = [sys.executable, "-m", "launch", "local", "--ranks", str(world)]
    return [*launch, "train", "configs/demo.yaml", *settings]


def _environment(ids: Path, faults: str) -> dict[str, str]:
    recorder = f"{sys.executable} {REPO}/tests/soak/recording_rank.py {ids}"
    rest = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return {**rest, "OMP_NUM_THREADS": "1", "RANK_PREFIX": recorder, "PIPELINE_FAULTS": faults}


def _run(base: Path, command: list[str], environment: dict[str, str]) -> int:
    with open(base / "log", "ab") as log:
        return subprocess.run(
            command, cwd=REPO, env=environment, stdout=log, stderr=log, timeout=1800
        ).returncode


def _compare(one: Trained, other: Trained) -> bool:
    """Print a line of differences; True where one is over its limit."""
    apart = {step: abs(loss - other.losses[step]) for step, loss in one.losses.items()}
    first = max(apart[step] for step in apart if step <= FIRST)
    found = different_ids(one.ids, other.ids)
    top1, loss = other.top1 - one.top1, other.ema_loss - one.ema_loss
    ids = "differ" if found else "identical"
    _line(
        other.name,
        ids,
        f"{first:.1e}",
        f"{max(apart.values()):.1e}",
        f"{top1:+.4f}",
        f"{loss:+.1e}",
    )
    print("\n".join(found), end="\n" if found else "", flush=True)
    return bool(found) or first > LOSS_LIMIT or abs(top1) > TOP1_LIMIT or abs(loss) > EMA_LOSS_LIMIT


def _line(name: str, ids: str, first: str, every: str, top1: str, loss: str) -> None:
    print(f"{name:<11} {ids:<10} {first:>15} {every:>10} {top1:>9} {loss:>10}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
