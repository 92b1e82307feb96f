"""A node that dies with everything on it: other nodes take its place."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launch.ledger import Ledger
from pipeline.run.folder import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

HERE = Path(__file__).parent


@pytest.fixture
def trio(needs_slurm, repo, testbed):
    """A testbed of three nodes of its own: one of them is going to die."""
    base = Path(tempfile.mkdtemp(prefix="trio-"))
    script = [repo / "slurm" / "testbed"]
    try:
        subprocess.run([*script, "up", "--dir", base / "bed", "--nodes", "3"], check=True,
                       timeout=90)  # fmt: skip
        env = {**testbed.env, "SLURM_CONF": str(base / "bed" / "slurm.conf")}
        yield type(testbed)(base / "bed", env)
    finally:
        subprocess.run([*script, "down", "--dir", base / "bed"], check=True, timeout=90)
        shutil.rmtree(base)


def kill_node(bed: Path, node: str) -> None:
    """Kill a node's slurmd and all that it started, as a power cut does."""
    started = json.loads((bed / "testbed.json").read_text())["started"]
    os.kill(started[f"slurmd-{node}"][0], signal.SIGKILL)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            values = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        marks = (f"SLURM_CONF={bed}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode())
        if all(mark in values for mark in marks):
            os.kill(int(path.name), signal.SIGKILL)


def test_a_lost_node_does_not_use_up_the_restarts(trio, tmp_path):
    folder, log = RunFolder(tmp_path / "run"), tmp_path / "log"
    command = f"exec {sys.executable} {HERE}/stand_in_job.py {folder.path} 150"
    job = trio.submit("--nodes=2", "--ntasks-per-node=1", "--requeue", "--signal=B:USR2@180",
                      "--open-mode=append", f"--output={log}", f"--wrap={command}")  # fmt: skip
    trio.until(lambda: folder.latest_step() > 5, "the first steps")
    assert trio.facts(job)["NodeList"] == "node[1-2]"
    kill_node(trio.folder, "node2")
    # SLURM first waits for the dead node's answer (SlurmdTimeout, 15 s in a testbed).
    trio.wait(job, "PENDING", timeout_s=90)
    trio.start_now(job)
    facts = trio.wait(job, "COMPLETED", "FAILED", timeout_s=90)
    assert (facts["JobState"], facts["NodeList"]) == ("COMPLETED", "node[1,3]"), log.read_text()
    statuses = [attempt.status for attempt in Ledger(folder).attempts(job)]
    assert statuses[-1] == "done" and statuses.count("crashed") <= 1, statuses
    assert folder.latest_step() == 150
