"""What `status` says of a real job: it runs, waits in the queue, runs again, is cancelled."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.folder import RunFolder

pytestmark = pytest.mark.slurm

HERE = Path(__file__).parent


def test_a_job_is_followed_from_start_through_the_queue_to_its_end(testbed, tmp_path: Path) -> None:
    run, log, script = RunFolder(tmp_path / "run"), tmp_path / "job.log", tmp_path / "job.sh"
    script.write_text(f'#!/bin/bash\nexec {sys.executable} {HERE}/stand_in_job.py "$@"\n')
    options = ("--requeue", "--signal=B:USR2@180", "--open-mode=append", "--nodes=2")
    job = testbed.submit(*options, "--ntasks-per-node=1", f"--output={log}", script,
                         run.path, "600", "")  # fmt: skip

    def told() -> dict[str, Any]:
        command = (sys.executable, "-m", "launch", "status", "--json", run.path)
        return json.loads(testbed.ask(*command))

    testbed.until(lambda: run.latest_step() > 3, "the first steps")
    running = told()
    assert running["state"] == "running"
    assert running["attempts"][-1]["job"] == job and running["logs"] == [str(log)]
    testbed.ask("scancel", "--batch", "--signal=USR2", job)
    testbed.wait(job, "PENDING")
    waiting = told()
    assert waiting["state"] == "waiting in the queue" and "BeginTime" in waiting["why"]
    assert waiting["step"] == run.latest_step() > 3
    testbed.start_now(job)
    testbed.until(lambda: run.latest_step() > waiting["step"] + 2, "more steps")
    assert told()["state"] == "running" and told()["failures"] == []
    testbed.ask("scancel", job)
    testbed.wait(job, "CANCELLED")
    testbed.until(lambda: told()["attempts"][-1]["ended_s"], "the supervisor's last word")
    assert told()["state"] == "saved"
