"""Builds as processes of their own, which get killed at random moments."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

START_S = 0.15
"""Python and its imports take about as long; the kills are to hit the work."""


def run_command(words: Sequence[object], out: Path, repo: Path) -> "subprocess.Popen[bytes]":
    """Start a build of a data set called "test", in a session of its own."""
    command = [sys.executable, "-m", "data_prep", "build", *map(str, words), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--name", "test"],
        cwd=repo,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def build_undisturbed(words: Sequence[object], out: Path, repo: Path) -> float:
    """Build in one go; returns how many seconds it took."""
    start_s = time.monotonic()
    process = run_command(words, out, repo)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()
    return time.monotonic() - start_s


def build_with_kills(
    words: Sequence[object], out: Path, repo: Path, took_s: float, kills: int
) -> None:
    """Build, killed at random moments until `kills` kills have hit, then to the end.

    A build that gets done in between is begun anew from the next kill on.
    """
    rng = random.Random(5)
    hit = 0
    while hit < kills:
        if (out / "manifest.json").exists():
            shutil.rmtree(out)
        process = run_command(words, out, repo)
        assert process.stderr is not None
        with process.stderr:
            try:
                process.wait(rng.uniform(START_S, max(took_s, 2 * START_S)))
            except subprocess.TimeoutExpired:
                hit += 1
                whole = hit % 2  # the workers with it, as SLURM does, or left behind
                (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
    build_undisturbed(words, out, repo)
