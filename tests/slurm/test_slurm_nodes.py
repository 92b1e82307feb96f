"""A node that ends attempts twice is left out, in the allocation or when the job comes back."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from launch.ledger import Ledger
from pipeline.run.folder import RunFolder

pytestmark = pytest.mark.slurm

HERE = Path(__file__).parent
OPTIONS = ("--requeue", "--signal=B:USR2@180", "--open-mode=append", "--ntasks-per-node=1")


@pytest.fixture
def start(testbed, tmp_path):
    """Submit the stand-in job with `steps` and a fault; returns (job id, run folder, log)."""

    def submit(steps: int, fault: str, *options: str):
        folder, log = RunFolder(tmp_path / "run"), tmp_path / "job.log"
        command = f"exec {sys.executable} {HERE}/stand_in_job.py {folder.path} {steps} {fault}"
        job = testbed.submit(*OPTIONS, f"--output={log}", *options, f"--wrap={command}")
        return job, folder, log

    return submit


def nodes_file(folder: RunFolder) -> dict:
    return json.loads((folder.path / "attempts" / "nodes.json").read_text())


def test_a_node_that_kills_its_rank_twice_is_left_out_inside_the_allocation(testbed, start):
    job, folder, log = start(20, "dies-on-node2", "--nodes=3", "--nodelist=node[1-3]")
    facts = testbed.wait(job, "COMPLETED", "FAILED", timeout_s=90)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), log.read_text()
    attempts = Ledger(folder).attempts(job)
    assert [a.status for a in attempts] == ["crashed", "crashed", "done"]
    hosts = {path.name: path.read_text() for path in (folder.path / "hosts").iterdir()}
    assert hosts == {"0.0": "node1", "0.1": "node2", "0.2": "node3", "1.0": "node1",
                     "1.1": "node2", "1.2": "node3", "2.0": "node1", "2.1": "node3"}  # fmt: skip
    assert [strike["attempt"] for strike in nodes_file(folder)["node2"]] == [0, 1]
    text = log.read_text()
    assert "left out, 2 of 3 ranks go on" in text
    summary = text.partition("supervise: DONE")[2].splitlines()
    assert "left out after two strikes (attempts/nodes.json): node2" in summary[1]


def test_the_batch_hosts_own_ranks_may_be_left_out_too(testbed, start):
    job, folder, log = start(20, "dies-on-node1", "--nodes=2", "--nodelist=node[1-2]")
    facts = testbed.wait(job, "COMPLETED", "FAILED", timeout_s=90)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), log.read_text()
    assert (folder.path / "hosts" / "2.0").read_text() == "node2"


def test_where_no_other_node_is_left_the_job_comes_back_on_another_one(testbed, start):
    job, folder, log = start(20, "dies-on-node1", "--nodes=1", "--exclude=node4")
    testbed.until(lambda: testbed.facts(job)["Restarts"] == "1", "the requeue", 60)
    testbed.start_now(job)
    facts = testbed.wait(job, "COMPLETED", "FAILED", timeout_s=90)
    assert facts["JobState"] == "COMPLETED", log.read_text()
    assert facts["ExcNodeList"] == "node1,node4", "the user's own exclusion stays"
    statuses = [a.status for a in Ledger(folder).attempts(job)]
    assert statuses == ["crashed", "crashed", "lost", "done"]
    text = log.read_text()
    assert "other nodes are asked for" in text
    assert f"job {job} comes back without node1,node4" in text


def test_a_signal_in_a_restart_gap_is_not_lost(testbed, start):
    job, folder, log = start(50, "", "--nodes=2")
    victim = folder.path / "pids" / "0.1"
    testbed.until(lambda: victim.exists() and folder.latest_step() > 3, "the first steps")
    os.kill(int(victim.read_text()), signal.SIGKILL)
    testbed.until(lambda: "task 1: Killed" in log.read_text(), "srun's word")
    testbed.ask("scancel", "--batch", "--signal=USR2", job)
    testbed.start_now(job)
    facts = testbed.wait(job, "COMPLETED", "FAILED", timeout_s=60)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), log.read_text()
    *before, last = Ledger(folder).attempts(job)
    assert (last.restart, last.status) == (1, "done")
    # The signal falls before the crash is noted, behind it, or on the start of the next attempt.
    assert [a.restart for a in before] == [0] * len(before) and len(before) <= 2
    assert before[0].status in ("crashed", "stopped", "saved")
    assert all(a.status in ("stopped", "saved") for a in before[1:]), "no further one after it"
    assert last.first_step == before[-1].last_step
