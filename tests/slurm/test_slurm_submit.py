"""Chains of jobs on the testbed: they wait for each other, survive a signal, fail together."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.ledger import Ledger
from launch.requests import ROOT
from pipeline.run.folder import RunFolder

pytestmark = pytest.mark.slurm

HERE = Path(__file__).parent
CHAIN = """
name: {name}
slurm: {{nodes: 1, time: "5"}}
jobs:
  - {{name: pretrain, run: [transfer, first, suite]}}
  - {{name: finetune, run: [transfer, second, suite]}}
"""


@pytest.fixture
def submit(testbed, tmp_path):
    """Submit a chain whose jobs run the stand-in: model `second` has its own steps and fault."""
    name = f"chain-{os.getpid()}-{tmp_path.name}"[:60]
    python = tmp_path / "python"
    # Called as `python -m launch supervise transfer MODEL SUITE`: $5 is the model.
    python.write_text(
        f"""#!/bin/bash
exec {sys.executable} {HERE}/stand_in_job.py {tmp_path}/$5 ${{STEPS}} "$FAULT"
"""
    )
    python.chmod(0o755)
    chain = tmp_path / "chain.yaml"
    chain.write_text(CHAIN.format(name=name))

    def start(steps: int, fault: str = "", *options: str) -> subprocess.Popen[str]:
        env = {"SUPERVISOR_PYTHON": str(python), "STEPS": str(steps), "FAULT": fault}
        return subprocess.Popen(
            [sys.executable, "-m", "launch", "submit", *options, str(chain)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env={**testbed.env, **env, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    yield start
    shutil.rmtree(ROOT / "runs" / "submitted" / name)


def test_a_chain_waits_survives_a_signal_and_ends_in_order(testbed, submit, tmp_path):
    process = submit(25, "", "--wait")
    assert process.stdout is not None
    first = process.stdout.readline().split(":")[0]
    run = RunFolder(tmp_path / "first")
    testbed.until(lambda: run.latest_step() > 3, "the first steps")
    testbed.ask("scancel", "--batch", "--signal=USR2", first)
    testbed.start_now(first)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    lines = [line for line in rest.splitlines() if "COMPLETED" in line]
    assert ["pretrain" in line for line in lines] == [True, False]
    assert "finetune" in rest and "PENDING (Dependency)" in rest
    assert [a.status for a in Ledger(run).attempts(first)] == ["saved", "done"]
    second = RunFolder(tmp_path / "second")
    started = Ledger(second).attempts(str(int(first) + 1))[0].started_s
    assert started >= (Ledger(run).attempts(first)[1].ended_s or 0)


def test_a_node_that_ends_attempts_twice_is_left_out_of_a_chains_job_too(testbed, submit, tmp_path):
    chain = tmp_path / "chain.yaml"
    asked = "slurm: {nodes: 2, nodelist: 'node[1-2]'}"
    *head, first, _ = chain.read_text().splitlines()
    chain.write_text("\n".join([*head, first.replace("run:", f"{asked}, run:")]))
    process = submit(10, "dies-on-node2", "--wait")
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 0, said
    run = RunFolder(tmp_path / "first")
    assert [a.status for a in Ledger(run).attempts()] == ["crashed", "crashed", "done"]
    assert (run.path / "hosts" / "2.0").read_text() == "node1"
    (log,) = (ROOT / "runs" / "submitted").glob(f"*{tmp_path.name}*/*_log.out")
    assert "node2 ended attempts twice" in (text := log.read_text())
    assert "left out, 1 of 2 ranks go on" in text


def test_what_follows_a_refused_job_is_cancelled(testbed, submit, tmp_path):
    process = submit(5, "misuse", "--wait")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "pretrain" in said and "FAILED exit 2:0" in said
    assert "CANCELLED (a job before it failed)" in said
    assert not (tmp_path / "second").exists()


def test_a_job_that_slurm_refuses_leaves_nothing_queued(testbed, submit, tmp_path):
    chain = tmp_path / "chain.yaml"
    words = "[transfer, second, suite]"
    chain.write_text(chain.read_text().replace(words, f"{words}, slurm: {{partition: moon}}"))
    process = submit(5)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "job 'finetune' was refused, nothing is queued" in said and "partition" in said
    first = said.splitlines()[0].split(":")[0]
    assert testbed.facts(first)["JobState"] == "CANCELLED"
