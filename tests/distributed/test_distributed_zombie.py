"""A job that stood still, was taken for dead and comes back: it may not touch the run any more."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.run.folder import RunFolder, Status
from pipeline.tracking.client import connect
from pipeline.tracking.digests import check_seal
from pipeline.tracking.events import history, read_events
from tests.soak.compare import different_points

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS, MODEL = 12, "zombie"


class Job:
    """One rank of a training in SLURM job 7, as attempt `attempt` of it."""

    def __init__(self, repo: Path, base: Path, data: Path, attempt: int, *faults: object) -> None:
        self.log = base / f"attempt-{attempt}.log"
        words = [
            f"length={{steps: {STEPS}}}", "lr.warmup_epochs=0.2", "checkpoint={every_steps: 4}",
            f"evaluate={{every_steps: {STEPS}}}", "name=z", f"runs={base}/runs", f"data={data}",
            f"tracking.uri=sqlite:///{base}/mlflow.db", f"tracking.register_as={MODEL}",
        ]  # fmt: skip
        env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        env |= {"SLURM_JOB_ID": "7", "PIPELINE_ATTEMPT": str(attempt), "OMP_NUM_THREADS": "1"}
        env |= {"PIPELINE_FAULTS": json.dumps(faults)}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "train", "configs/demo.yaml", *words],
                cwd=repo, stdout=log, stderr=log, env=env,
            )  # fmt: skip

    def until_stopped(self) -> None:
        deadline = time.monotonic() + 120
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2][0] != "T":
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def go_on(self) -> int:
        self.process.send_signal(signal.SIGCONT)
        return self.process.wait(120)


@pytest.mark.parametrize("point", ["step", "finish"])
def test_a_job_that_comes_back_after_another_took_over_changes_nothing(
    point: str, repo: Path, tmp_path: Path, digits: Path
) -> None:
    step = 6 if point == "step" else STEPS
    old = Job(repo, tmp_path, digits, 0, {"kind": "stop", "step": step, "point": point})
    try:
        old.until_stopped()
        new = Job(repo, tmp_path, digits, 1)
        assert new.process.wait(240) == 0, new.log.read_text()
        run, uri = RunFolder(tmp_path / "runs" / "z"), f"sqlite:///{tmp_path}/mlflow.db"
        before = contents(run)
        assert old.go_on() == 1, old.log.read_text()
    finally:
        old.process.kill()
        old.process.wait()
    assert "another job took this run over" in old.log.read_text()
    assert contents(run) == before
    ends = [event.values["status"] for event in read_events(run.spool) if event.kind == "finish"]
    assert ends == ["FINISHED"]
    assert not different_points(run, uri)
    assert [p.step for p in history(run.spool)["train/loss"]] == list(range(1, STEPS + 1))
    versions = connect(uri).search_model_versions(f"name='{MODEL}'")
    assert len(versions) == 1
    check_seal(run.package, versions[0].tags["sha256"])
    outcomes = [run.read_outcome(attempt) for attempt in (0, 1)]
    assert [outcome.status for outcome in outcomes if outcome] == [Status.FAILED, Status.DONE]


def contents(run: RunFolder) -> dict[str, tuple[int, bytes]]:
    """Return when each file of checkpoints and package was written, and what it holds."""
    files = [*run.checkpoints.rglob("*"), *run.package.rglob("*")]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files if p.is_file()}
