"""The supervisor in real jobs: crash, preemption, wrong use, a run that cannot get on."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from launch.ledger import Ledger
from pipeline.run.folder import RunFolder

pytestmark = pytest.mark.slurm

HERE = Path(__file__).parent
OPTIONS = ("--requeue", "--signal=B:USR2@180", "--open-mode=append", "--nodes=2")


@pytest.fixture
def start(testbed, tmp_path):
    """Submit the stand-in job with `steps` and a fault; returns (job id, run folder, log)."""

    def submit(steps: int, fault: str = "", *options: str):
        folder, log = RunFolder(tmp_path / "run"), tmp_path / "job.log"
        script = tmp_path / "job.sh"

        script.write_text(f'#!/bin/bash\nexec {sys.executable} {HERE}/stand_in_job.py "$@"\n')
        job = testbed.submit(
            *OPTIONS, "--ntasks-per-node=1", f"--output={log}", *options,
            script, folder.path, str(steps), fault,
        )  # fmt: skip
        return job, folder, log

    return submit


def test_a_killed_rank_restarts_the_step_inside_the_allocation(testbed, start):
    job, folder, log = start(50)
    victim = folder.path / "pids" / "0.1"
    testbed.until(lambda: victim.exists() and folder.latest_step() > 5, "the first steps")
    os.kill(int(victim.read_text()), signal.SIGKILL)
    facts = testbed.wait(job, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0")
    first, second = Ledger(folder).attempts(job)
    assert (first.status, second.status) == ("crashed", "done")
    assert "task 1: Killed" in first.reason, "the summary names who died"
    assert second.first_step == first.last_step and second.last_step == 50
    assert second.started_s - (first.ended_s or 0) < 20, "a crash must not cost a queue's wait"
    assert "supervise: DONE" in log.read_text()


def test_usr2_saves_requeues_and_goes_on_with_the_next_number(testbed, start):
    job, folder, log = start(40)
    testbed.until(lambda: folder.latest_step() > 3, "the first steps")
    testbed.ask("scancel", "--batch", "--signal=USR2", job)
    testbed.start_now(job)
    facts = testbed.wait(job, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1")
    first, second = Ledger(folder).attempts(job)
    assert (first.number, first.status, first.restart) == (0, "saved", 0)
    assert (second.number, second.status, second.restart) == (1, "done", 1)
    assert second.first_step == first.last_step, "nothing is lost"
    assert f"job {job} goes back into the queue" in log.read_text()


def test_a_preempted_job_saves_and_comes_back(testbed, start):
    job, folder, _ = start(60, "", "--exclusive")
    testbed.until(lambda: folder.latest_step() > 3, "the first steps")
    urgent = testbed.submit("--partition=high", "--exclusive", "--nodes=4", "--wrap=sleep 1",
                            "--output=/dev/null")  # fmt: skip
    testbed.wait(urgent, "COMPLETED")
    testbed.start_now(job)
    assert testbed.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    first, second = Ledger(folder).attempts(job)
    assert (first.status, second.status) == ("saved", "done")
    assert second.first_step == first.last_step


def test_a_requeue_by_somebody_else_saves_within_killwait(testbed, start):
    job, folder, log = start(40)
    testbed.until(lambda: folder.latest_step() > 3, "the first steps")
    testbed.ask("scontrol", "requeue", job)
    testbed.start_now(job)
    assert testbed.wait(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    first, second = Ledger(folder).attempts(job)
    assert (first.status, second.status) == ("saved", "done")
    assert second.first_step == first.last_step
    assert "whether it comes back is SLURM's decision" in log.read_text()


def test_before_the_time_limit_the_job_saves_and_goes_on_in_its_next_time(testbed, start):
    """SLURM looks at limits every 30 s; a longer one spares the second part a third."""
    job, folder, log = start(500, "", "--time=1", "--signal=B:USR2@50")
    testbed.until(lambda: testbed.facts(job)["Restarts"] == "1", "the requeue", 75)
    facts = testbed.wait(job, "PENDING")
    assert facts["Reason"] == "BeginTime", "SLURM's own wait, not a failure"
    testbed.ask("scontrol", "update", f"JobId={job}", "TimeLimit=5")
    testbed.start_now(job)
    facts = testbed.wait(job, "COMPLETED", "FAILED", "TIMEOUT", timeout_s=120)
    assert facts["JobState"] == "COMPLETED", log.read_text()
    first, second = Ledger(folder).attempts(job)
    assert (first.status, second.status) == ("saved", "done")
    assert first.reason.startswith("SIGUSR2")
    assert (second.first_step, second.last_step) == (first.last_step, 500), "no step is lost"


def test_ranks_that_do_not_save_are_ended_in_time_and_the_job_requeued(testbed, start, monkeypatch):
    monkeypatch.setitem(testbed.env, "SAVE_S", "1")
    job, folder, log = start(600, "deaf")
    testbed.until(lambda: folder.latest_step() > 3, "the first steps")
    testbed.ask("scancel", "--batch", "--signal=USR2", job)
    testbed.wait(job, "PENDING", timeout_s=30)
    testbed.ask("scancel", job)
    assert Ledger(folder).attempts(job)[0].status == "stopped"
    assert "the ranks did not end in time" in log.read_text()


def test_a_cancelled_job_does_not_come_back(testbed, start):
    job, folder, _ = start(600)
    testbed.until(lambda: folder.latest_step() > 3, "the first steps")
    testbed.ask("scancel", job)
    testbed.wait(job, "CANCELLED")
    time.sleep(2)
    assert testbed.facts(job)["JobState"] == "CANCELLED"


def test_wrong_use_ends_with_2_and_no_restart(testbed, start):
    job, folder, log = start(50, "misuse")
    facts = testbed.wait(job, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0")
    assert len(Ledger(folder).attempts(job)) == 1
    assert "cause: field 'x' is 1: use 2" in log.read_text()


def test_a_run_that_cannot_get_on_stops_after_three_restarts_with_the_cause(testbed, start):
    job, folder, log = start(50, "raise")
    facts = testbed.wait(job, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "1:0")
    assert len(Ledger(folder).attempts(job)) == 4
    summary = log.read_text().partition("supervise: FAILED")[2].splitlines()
    assert "ValueError: poison" in " ".join(summary[:3])
