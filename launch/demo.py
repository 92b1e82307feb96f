"""`make demo`: everything once, small: shards > train > register > finetune > report.

Images become shards, a chain of jobs trains on them, a page tells the result. The chain runs
on a throw-away SLURM cluster where SLURM is installed and this is root, else as two local
processes; the jobs are the same. Everything it makes lies in the repository's `demo`, `data`,
`runs` and `mlflow.db`, and a second demo starts from nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.chain import read_chain
from launch.requests import ROOT
from pipeline.run.folder import DONE

CHAIN = Path("configs/demo_chain.yaml")
RUNS = ("demo", "demo-base", "demo-finetune")
SUITE = "demo-transfer"
OUTPUT = ROOT / "demo"
RANKS = 2
LIMIT_S = 1200.0
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun")

SHARDS = {
    "digits": ("--holdout", "0.2"),
    "digits_base": ("--holdout", "0.2", "--classes", "0,1,2,3,4,5"),
    "digits_few": ("--holdout", "0.5", "--classes", "6,7,8,9", "--per-class", "10"),
}
"""Data sets of the demo: all digits; six to pretrain on; ten images each of the other four."""

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""So small a model gains nothing from more, and two cores are soon crowded."""


def demo() -> int:
    """Run the demo; returns 0, or the exit code of what failed."""
    started = time.monotonic()
    os.chdir(ROOT)
    _clear()
    for name, command in _preparations():
        print(f"\n== {name}", flush=True)
        code = subprocess.run([sys.executable, "-m", *command], timeout=LIMIT_S).returncode
        if code != DONE:
            return code
    code = _train()
    if code != DONE:
        return code
    runs = [str(Path("runs") / name) for name in RUNS]
    transfer = Path("runs") / SUITE / "transfer.json"
    page = OUTPUT / "report.html"
    report = [*runs, "--transfer", str(transfer), "--output", str(page), "--title", "Demo"]
    code = _pipeline("report", *report)
    if code == DONE:
        _summary(page, transfer, time.monotonic() - started)
    return code


def _clear() -> None:
    """Remove what an earlier demo left: its runs and its shards, nothing else."""
    suite = [path.name for path in Path("runs").glob(f"{SUITE}*")]
    for folder in [*(Path("runs") / name for name in (*RUNS, *suite)), OUTPUT,
                   Path("runs/submitted/demo"),
                   *(Path("data") / name for name in SHARDS)]:  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
    OUTPUT.mkdir()


def _preparations() -> Iterator[tuple[str, list[str]]]:
    raw = str(OUTPUT / "digits")
    yield "real images: scikit-learn's digits as JPEGs", ["data_prep", "synthetic", "digits", raw]
    for name, options in SHARDS.items():
        build = ["data_prep", "build", raw, f"data/{name}", *options]
        yield f"shards: data/{name} ({' '.join(options)})", build


def _train() -> int:
    """Run the chain, on a SLURM testbed where there can be one."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        why = f"{', '.join(missing)} not installed" if missing else "this is not root"
        print(f"\n== training as {RANKS} local processes (no SLURM testbed: {why})", flush=True)
        return _locally()
    print("\n== training on a throw-away SLURM cluster of two nodes (slurm/testbed)", flush=True)
    with _testbed() as env, _followed(ROOT / "runs" / "submitted" / "demo"):
        command = [sys.executable, "-m", "launch", "submit", "--wait", str(CHAIN)]
        return subprocess.run(command, env=env, timeout=LIMIT_S).returncode


def _locally() -> int:
    for job in read_chain([CHAIN]).jobs:
        ranks = RANKS if job.run[0] == "train" else 1
        command = [sys.executable, "-m", "launch", "local", "--ranks", str(ranks), *job.run]
        code = subprocess.run(command, env=ONE_THREAD, timeout=LIMIT_S).returncode
        if code != DONE:
            return code
    return DONE


@contextmanager
def _testbed() -> Iterator[dict[str, str]]:
    """Bring a cluster up for the time inside; yields the environment that leads to it."""
    bed = [str(ROOT / "slurm" / "testbed"), "--dir", str(OUTPUT / "cluster")]
    subprocess.run([bed[0], "up", *bed[1:], "--nodes", "2"], check=True, timeout=120)
    try:
        lines = subprocess.run(
            [bed[0], "env", *bed[1:]], check=True, timeout=30, capture_output=True, text=True
        ).stdout.splitlines()
        pairs = (line.removeprefix("export ").partition("=") for line in lines if "=" in line)
        yield {**os.environ, **{name: value.strip("'\"") for name, _, value in pairs}}
    finally:
        subprocess.run([bed[0], "down", *bed[1:]], check=False, timeout=120)


@contextmanager
def _followed(folder: Path) -> Iterator[None]:
    """Show what the jobs' logs in `folder` say, as they say it."""
    closed = threading.Event()
    thread = threading.Thread(target=_follow, args=(folder, closed), daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join(timeout=10)


def _follow(folder: Path, closed: threading.Event) -> None:
    seen: dict[Path, int] = {}
    while True:
        last = closed.is_set()
        for path in sorted(folder.glob("*.out")):
            with path.open(errors="replace") as file:
                file.seek(seen.get(path, 0))
                sys.stdout.write(file.read())
                seen[path] = file.tell()
        sys.stdout.flush()
        if last:
            return
        closed.wait(0.5)


def _pipeline(*arguments: str) -> int:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, timeout=LIMIT_S).returncode


def _summary(page: Path, transfer: Path, seconds: float) -> None:
    scores = json.loads((Path("runs") / RUNS[0] / "evaluation.json").read_text())
    cells = json.loads(transfer.read_text())["tasks"][0]["top1"]
    means = {way: sum(values) / len(values) for way, values in cells.items()}
    image = next((OUTPUT / "digits").rglob("*.jpg")).relative_to(ROOT)
    python = Path(sys.executable)
    python = python.relative_to(ROOT) if python.is_relative_to(ROOT) else python
    print(
        f"""
== done in {seconds:.0f} s
ten digits        top-1 {scores["top1"]:.2%} on {scores["num_images"]} held-out images
four new digits   top-1 {means["finetuned"]:.2%} finetuned from the base model, ten images each
                  top-1 {means["scratch"]:.2%} from random weights, the same images
report            {page}
runs              {", ".join(f"runs/{name}" for name in (*RUNS, SUITE))}
models            demo-digits, demo-digits-base, demo-digits-four in mlflow.db

next:
  {python} -m pipeline predict --model models:/demo-digits@candidate {image}
  {python} -m mlflow ui --backend-store-uri sqlite:///mlflow.db
  {python} -m pipeline plan configs/v2_l_21k.yaml
  sbatch launch/v2_l_21k.sh data=FOLDER_OF_SHARDS"""
    )
