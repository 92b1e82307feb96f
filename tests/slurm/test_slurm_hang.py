"""A rank on the second node is stopped: found, named, dumped, started again, finished."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.ledger import Attempt, Ledger
from pipeline.run.folder import RunFolder
from pipeline.run.hang import read_hang, stacks_file
from tests.slurm.test_slurm_training import environment, rank_processes

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

DEADLINE_S = 10
SETTINGS = (
    "length={steps: 60}", "lr.warmup_epochs=null", "lr.warmup_steps=10", "stages.count=2",
    "checkpoint={every_steps: 10}", "evaluate={every_steps: 60}", "tracking.enabled=false",
    f"watch={{data_s: {DEADLINE_S}, step_s: {DEADLINE_S}, beat_every_s: 0.5}}",
)  # fmt: skip


@dataclass(frozen=True)
class Hung:
    """The job's end."""

    folder: RunFolder
    attempts: list[Attempt]
    log: str
    stopped_s: float
    pid: int


@pytest.fixture(scope="module")
def hung(testbed, repo: Path, digits: Path, tmp_path_factory, read_losses) -> Hung:
    base = tmp_path_factory.mktemp("hung")
    folder = RunFolder(base / "runs" / "hung")
    words = [f"bash {repo}/slurm/job.sh train configs/demo.yaml name=hung runs={base}/runs"]
    words += [f"data={digits}", *(f"'{word}'" for word in SETTINGS)]
    job = testbed.submit(
        "--nodes=2", "--ntasks-per-node=1", "--requeue", f"--output={base}/hung.log",
        f"--export=ALL,SUPERVISOR_PYTHON={sys.executable}", f"--wrap=exec {' '.join(words)}",
    )  # fmt: skip
    testbed.until(lambda: max(read_losses(folder), default=0) >= 15, "step 15", 180)
    pid = min(pid for pid in rank_processes(folder) if b"SLURM_PROCID=1\0" in environment(pid))
    stopped_s = time.time()
    os.kill(pid, signal.SIGSTOP)
    facts = testbed.wait(job, "COMPLETED", "FAILED", timeout_s=240)
    log = (base / "hung.log").read_text()
    assert facts["JobState"] == "COMPLETED", log[-5000:]
    return Hung(folder, Ledger(folder).attempts(job), log, stopped_s, pid)


def test_the_stopped_rank_is_found_in_time_with_its_node(hung: Hung) -> None:
    verdict = read_hang(hung.folder, 0)
    assert verdict is not None
    assert verdict["text"].startswith("hang: rank 1 on node2 in section ")
    assert "it is stopped, as by SIGSTOP" in verdict["text"]
    assert (verdict["late"]["pid"], verdict["found_by"]["host"]) == (hung.pid, "node1")
    assert verdict["found_s"] - hung.stopped_s < DEADLINE_S + 5
    assert [item["rank"] for item in verdict["without_stacks"]] == [1]
    assert "_go_on" in stacks_file(hung.folder, 0, 0).read_text()
    assert verdict["text"] in hung.log


def test_the_step_is_started_again_in_the_same_allocation_and_finishes(hung: Hung) -> None:
    first, second = hung.attempts
    assert (first.status, second.status) == ("hung", "done")
    assert first.reason.startswith("hang: rank 1 on node2 in section ")
    assert (first.restart, second.restart) == (0, 0), "no requeue"
    assert second.last_step == 60 and second.first_step == first.last_step
    assert second.started_s - (first.ended_s or 0) < 20


def test_the_stopped_process_is_gone(hung: Hung) -> None:
    assert not Path(f"/proc/{hung.pid}").exists()
    assert not rank_processes(hung.folder)
