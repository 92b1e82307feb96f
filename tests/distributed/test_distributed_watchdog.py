"""Trainings that hang are found in time, named, started again, and end with the same weights."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.ledger import Ledger
from pipeline.checkpoint.state import equal
from pipeline.checkpoint.store import read
from pipeline.run.folder import RunFolder
from pipeline.run.hang import read_hang, stacks_file

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

DEADLINE_S = 10
HANGS = ("sleep:1:8", "stop:1:16", "lock:0:20")
"""One for each attempt: the fault, the rank, and the step before which it comes."""
LAST = "checkpoints/step-000000024"
SETTINGS = (
    "length={steps: 24}", "batch.global_size=64", "stages.count=2", "stages.micro_batches=4",
    "stages.mixup=[0.1, 0.3]", "stages.dropout=[0.1, 0.3]", "lr.warmup_epochs=0.2",
    "checkpoint={every_steps: 6}", "evaluate={every_steps: 24}",
    f"watch={{data_s: {DEADLINE_S}, step_s: {DEADLINE_S}, beat_every_s: 0.5}}",
)  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """A training that hung in three attempts, what its supervisor said, and one that did not."""

    hung: RunFolder
    said: str
    whole: RunFolder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, repo: Path, digits: Path, references) -> Runs:
    base = tmp_path_factory.mktemp("hangs")
    python = base / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.distributed.hanging_rank "$@"\n')
    python.chmod(0o755)
    env = {key: v for key, v in os.environ.items() if not key.startswith("SLURM")}
    env |= {"RANK_PYTHON": str(python), "HANGS": " ".join(HANGS), "OMP_NUM_THREADS": "1"}
    words = ["name=hung", f"runs={base}", f"data={digits}", "tracking.enabled=false"]
    done = subprocess.run(
        [sys.executable, "-m", "launch", "local", "--ranks", "2", "train", "configs/demo.yaml",
         *words, *SETTINGS],
        cwd=repo, env=env, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    return Runs(RunFolder(base / "hung"), said, references.run("whole", 2, *SETTINGS))


def only_job(folder: RunFolder) -> str:
    text = (folder.path / "attempts" / "ledger.jsonl").read_text()
    return text.partition('"job": "')[2].partition('"')[0]


@pytest.mark.parametrize("attempt", range(len(HANGS)))
def test_a_hang_is_found_in_time_and_names_rank_host_section_and_step(
    runs: Runs, attempt: int
) -> None:
    _, rank, step = HANGS[attempt].split(":")
    verdict = read_hang(runs.hung, attempt)
    assert verdict is not None
    host = os.uname().nodename
    assert verdict["text"].startswith(
        f"hang: rank {rank} on {host} in section step at step {step}:"
    )
    assert verdict["found_s"] - verdict["late"]["since_s"] < DEADLINE_S + 5
    assert verdict["text"] in runs.said
    entry = Ledger(runs.hung).attempts(only_job(runs.hung))[attempt]
    assert (entry.status, entry.reason) == ("hung", verdict["text"])


def test_all_ranks_that_can_leave_their_stacks(runs: Runs) -> None:
    stacks = {
        (attempt, rank): stacks_file(runs.hung, attempt, rank).read_text()
        for attempt in range(len(HANGS))
        for rank in (0, 1)
    }
    assert not stacks.pop((1, 1)), "a stopped process writes nothing"
    verdict = read_hang(runs.hung, 1)
    assert verdict is not None
    assert [item["rank"] for item in verdict["without_stacks"]] == [1]
    assert "SIGSTOP" in verdict["without_stacks"][0]["why"]
    assert all("_go_on" in text for text in stacks.values()), stacks
    waits = {key: "engine/step.py" in text for key, text in stacks.items()}
    assert waits == {(0, 0): True, (0, 1): False, (1, 0): True, (2, 0): False, (2, 1): True}


def test_every_hang_is_followed_by_a_restart_and_the_weights_are_the_same(
    runs: Runs, read_losses
) -> None:
    attempts = Ledger(runs.hung).attempts(only_job(runs.hung))
    assert [a.status for a in attempts] == ["hung", "hung", "hung", "done"]
    steps = [a.last_step or 0 for a in attempts]
    assert steps == sorted(steps) and steps[0] == 6 and steps[-1] == 24
    assert equal(read(runs.hung.path / LAST), read(runs.whole.path / LAST))
    assert read_losses(runs.hung) == read_losses(runs.whole)
    assert "supervise: DONE" in runs.said


def test_no_process_of_a_hung_attempt_is_left(runs: Runs) -> None:
    wanted = f"runs={runs.hung.path.parent}\0".encode()
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if wanted in bytes_of(path)]
    assert not left, "the stopped one is killed before the restart"


def bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
