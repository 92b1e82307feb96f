"""What a run is doing, judged from real folders and from what SLURM says."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch.ledger import Ledger
from launch.run_facts import read_facts
from launch.run_state import State
from pipeline.run.beats import Section
from pipeline.run.folder import Outcome, RunFolder, Status
from pipeline.run.lease import Lease
from tests.unit.launch.made_runs import GONE, beat, end, hang, judged, text_of


def test_a_run_that_was_only_prepared_has_not_started(run: RunFolder) -> None:
    assert judged(run).state is State.NEW


def test_a_run_whose_rank_0_holds_the_lease_runs(run: RunFolder, lease: Lease) -> None:
    Ledger(run).begin(GONE, 0, "node1", -1)
    assert judged(run).state is State.RUNNING


def test_a_run_without_a_supervisor_is_judged_by_its_lease(run: RunFolder) -> None:
    held = Lease(run.lease)
    assert judged(run).state is State.RUNNING and "unsupervised" in judged(run).why
    held.release()
    assert judged(run).state is State.CUT_OFF
    run.write_outcome(0, Outcome(Status.SAVED, 4, "SIGINT"))
    assert judged(run).state is State.SAVED


def test_a_silent_rank_hangs_the_run_and_is_named(run: RunFolder, lease: Lease) -> None:
    Ledger(run).begin(GONE, 0, "node1", -1)
    for rank in range(4):
        beat(run, rank, age_s=2)
    assert judged(run).state is State.RUNNING
    beat(run, 2, age_s=45)
    state, why = judged(run)
    assert state is State.HUNG
    assert why == "rank 2 on node2 gave no sign of life for 45 s, in section step at step 120"
    assert "3 of 4 ranks give signs of life" in (text := text_of(run))
    assert "rank     2  node2  step at step 120, last seen 45 s ago" in text


def test_how_long_a_rank_may_be_silent_follows_from_its_own_interval(
    run: RunFolder, lease: Lease
) -> None:
    Ledger(run).begin(GONE, 0, "node1", -1)
    for rank in range(4):
        beat(run, rank, 45, every_s=60)
    assert judged(run).state is State.RUNNING
    beat(run, 2, 190, every_s=60)
    assert judged(run).state is State.HUNG


def test_ranks_of_a_run_that_has_ended_are_not_missed(run: RunFolder) -> None:
    end(run, "done", step=10)
    run.write_outcome(0, Outcome(Status.DONE, 10))
    beat(run, 0, 3600)
    assert judged(run).state is State.DONE
    assert "signs of life" not in text_of(run)


def test_a_deadline_that_passed_is_a_hang(run: RunFolder, lease: Lease) -> None:
    attempt = Ledger(run).begin(GONE, 0, "node1", -1)
    beat(run, 0, age_s=1)
    hang(run, attempt.number, age_s=0)
    assert judged(run) == (State.HUNG, "hang: rank 0 on node0 in section step at step 120")


def test_what_an_earlier_try_without_a_supervisor_left_is_not_of_this_one(run: RunFolder) -> None:
    """All of them have number 0."""
    run.write_outcome(0, Outcome(Status.SAVED, 4, "SIGINT"))
    hang(run, 0, age_s=60)
    for rank in range(2):
        beat(run, rank, age_s=60)
    time.sleep(0.01)
    held = Lease(run.lease)
    assert judged(run).state is State.RUNNING
    beat(run, 0, age_s=0)
    assert judged(run).state is State.RUNNING
    assert "1 of 1 ranks give signs of life" in text_of(run)
    held.release()
    assert judged(run).state is State.CUT_OFF, "it left no outcome of its own"


def test_a_try_without_a_supervisor_after_one_with_it_runs(run: RunFolder) -> None:
    end(run, "saved", reason="SIGUSR2", step=4)
    assert judged(run).state is State.SAVED
    held = Lease(run.lease)
    beat(run, 0, age_s=0)
    state, why = judged(run)
    assert state is State.RUNNING and "unsupervised" in why
    held.release()
    assert judged(run).state is State.SAVED


def test_a_run_in_setup_says_so(run: RunFolder, lease: Lease) -> None:
    Ledger(run).begin(GONE, 0, "node1", -1)
    beat(run, 0, age_s=1, section=Section.COMPILE)
    assert judged(run) == (State.RUNNING, "in section compile")


def test_slurm_says_that_a_job_waits_and_why(run: RunFolder, programs) -> None:
    facts = "JobId=12 JobState=PENDING Reason=BeginTime StartTime=2026-11-21T10:00:00"
    programs("scontrol", f"echo '{facts} StdOut=/logs/counted-12.log'")
    end(run, "saved", "12", "SIGUSR2", step=4)
    state, why = judged(run)
    assert state is State.WAITING
    assert why == "PENDING (BeginTime), start expected at 2026-11-21 10:00:00"
    assert "logs        /logs/counted-12.log" in text_of(run)


def test_a_crashed_attempt_of_a_running_job_is_restarted(run: RunFolder, programs) -> None:
    programs("scontrol", "echo 'JobId=12 JobState=RUNNING TimeLimit=1-00:00:00'")
    end(run, "crashed", "12", "rank 1 was killed by SIGKILL", step=4)
    assert judged(run) == (State.RESTARTING, "restart 1 of 3")
    text = text_of(run)
    assert "attempt 0: crashed, step 4 to 4 in 0 s: rank 1 was killed by SIGKILL" in text
    assert "limit 1-00:00:00" in text


def test_a_hung_attempt_counts_as_a_crash(run: RunFolder, programs) -> None:
    programs("scontrol", "echo 'JobId=12 JobState=RUNNING'")
    end(run, "hung", "12", "hang: rank 1 on node1")
    assert judged(run).state is State.RESTARTING


def test_a_saved_run_that_slurm_does_not_know_any_more_is_saved(run: RunFolder, programs) -> None:
    programs("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    end(run, "saved", "12", "SIGTERM", step=4)
    assert judged(run).state is State.SAVED
    assert read_facts(run.path).problems == ["spool/events.jsonl is missing"]


def test_where_slurm_is_silent_that_is_said_and_the_rest_is_told(run: RunFolder, programs) -> None:
    programs("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    end(run, "saved", "12", "SIGTERM", step=4)
    assert judged(run).state is State.SAVED
    assert "SLURM's answer: scontrol" in text_of(run)


@pytest.mark.parametrize(
    ("status", "state", "why"),
    [
        ("done", State.DONE, ""),
        ("misuse", State.FAILED, "field 'x' is 1: use 2"),
        ("saved", State.SAVED, "field 'x' is 1: use 2; the same command goes on"),
        ("stopped", State.CUT_OFF, "stopped: field 'x' is 1: use 2; the same command"),
        ("lost", State.CUT_OFF, "lost: field 'x' is 1: use 2; the same command"),
        ("crashed", State.CUT_OFF, "its supervisor is gone"),
    ],
)
def test_what_a_local_attempt_ended_with(
    run: RunFolder, status: str, state: State, why: str
) -> None:
    end(run, status, reason="" if status == "done" else "field 'x' is 1: use 2")
    assert judged(run).state is state
    assert judged(run).why.startswith(why)


def test_a_run_that_was_given_up_has_failed_and_tells_why(run: RunFolder) -> None:
    for _ in range(4):
        end(run, "crashed", reason="ValueError: poison", step=4)
    assert judged(run) == (State.FAILED, "3 restarts without a new checkpoint after step 4")


def test_a_real_run_is_followed_from_start_to_kill(run: RunFolder, rank_program, repo) -> None:
    """A supervisor and its ranks, then nothing but their folder."""
    code = (
        "import sys; from pathlib import Path; from launch.attempts import *; "
        "from launch.local import LocalLauncher; from launch.stop import StopRequest; "
        "import os, socket; "
        "job = f'{socket.gethostname()}-{os.getpid()}-1'; folder = RunFolder(Path(sys.argv[1])); "
        "work = Work(sys.argv[2:], 2, folder); "
        "run_attempts(LocalLauncher(2, 'x'), work, Job(job, 0, False), StopRequest())"
    )
    command = [sys.executable, "-c", code, str(run.path), *rank_program, str(run.path), "600"]
    supervisor = subprocess.Popen(command, cwd=repo, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while run.latest_step() < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert judged(run).state is State.RUNNING
        facts = read_facts(run.path)
        assert facts.supervisor_lives and facts.checkpoint and facts.checkpoint.step >= 2
        os.kill(int((run.path / "pids" / "0.1").read_text()), signal.SIGKILL)
        while len(read_facts(run.path).attempts) < 2:
            assert time.monotonic() < deadline
            assert judged(run).state in (State.RUNNING, State.RESTARTING)
            time.sleep(0.05)
        assert "rank 1 was killed by SIGKILL" in text_of(run)
    finally:
        supervisor.kill()
        supervisor.wait()
    assert judged(run).state is State.CUT_OFF
