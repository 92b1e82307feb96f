"""Faults on purpose in real trainings: met once, survived, and no trace in the weights."""

import json
import os
import subprocess
import sys

import pytest

from launch.ledger import Ledger
from pipeline.checkpoint.state import equal
from pipeline.checkpoint.store import read
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SETTINGS = (
    "length={steps: 24}",
    "lr.warmup_epochs=0.2",
    "checkpoint={every_steps: 8}",
    "evaluate={every_steps: 24}",
)
LAST = "checkpoints/step-000000024"


@pytest.fixture
def supervised(launcher, repo):
    """Train `name` under the supervisor with these faults; returns (exit code, output)."""

    def run(name: str, *faults: dict[str, object]) -> tuple[int, str]:
        command = [sys.executable, "-m", "launch", "local", "--ranks", "2", "train"]
        where = (f"name={name}", f"runs={launcher.runs}", f"data={launcher.data}")
        done = subprocess.run(
            [*command, "configs/demo.yaml", *where, "tracking.enabled=false", *SETTINGS],
            cwd=repo, capture_output=True, text=True, timeout=400,
            env={**os.environ, "PIPELINE_FAULTS": json.dumps(faults), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_kill_a_full_disk_and_a_cut_leave_no_trace(launcher, supervised) -> None:
    whole = launcher.run("whole", 2, *SETTINGS)
    code, said = supervised(
        "broken",
        {"kind": "nospace", "step": 8, "bytes": 500_000},
        {"kind": "kill", "rank": 1, "step": 18, "point": "data"},
        {"kind": "cut", "step": 24, "bytes": 700_000},
    )
    assert code == 0, said[-5000:]
    folder = launcher.folder("broken")
    statuses = [attempt.status for attempt in attempts(folder)]
    assert statuses == ["crashed", "crashed", "done"], said[-5000:]
    assert "checkpoint not written ([Errno 28] No space left" in said
    assert len(list((folder.path / "faults").iterdir())) == 3
    assert equal(read(folder.path / LAST), read(whole.path / LAST))


def test_a_bad_loss_on_purpose_is_left_out_and_a_wrong_fault_is_refused(
    launcher, supervised
) -> None:
    code, said = supervised("bad", {"kind": "nan", "rank": 1, "step": 5})
    assert code == 0, said[-5000:]
    assert "rank 1: the loss of step 5 is nan: left out" in said
    state = read_json(launcher.folder("bad").path / LAST / "state.json")
    assert state is not None and state["bad_steps"] == [5]
    code, said = supervised("wrong", {"kind": "melt", "step": 5})
    assert code == 2, said[-5000:]
    assert "PIPELINE_FAULTS: field 'faults.0.kind' is 'melt'" in said


def attempts(folder: RunFolder) -> list:
    """Return the attempts of the one job at a run."""
    ledger = folder.path / "attempts" / "ledger.jsonl"
    job = json.loads(ledger.read_text().splitlines()[0])["job"]
    return Ledger(folder).attempts(job)
