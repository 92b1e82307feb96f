"""A job that may come back smaller: the same batches and losses on fewer nodes, and on the other
strategy."""

import sys
import time
from pathlib import Path

import pytest

from launch.ledger import Ledger
from pipeline.checkpoint.store import read
from pipeline.run.folder import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS = 50
# Twelve micro-batches: 3 nodes, 2 and 1 share them, and 48 lanes hold them. At the demo's own rate,
# ten times this, rounding alone grows to 1e-4 within 50 steps.
SETTINGS = (
    f"length={{steps: {STEPS}}}", "lr.warmup_epochs=null", "lr.warmup_steps=10", "lr.peak=0.002",
    "batch.global_size=192", "stages.micro_batches=12", "stages.px=[16, 24]", "loader.lanes=48",
    "checkpoint={every_steps: 10}", f"evaluate={{every_steps: {STEPS}}}",
    "tracking.enabled=false",
)  # fmt: skip
# With --ntasks-per-node=1 SLURM takes the fewest nodes of a range; without it, or with more tasks,
# as many as there are.
OPTIONS = ("--requeue", "--signal=B:USR2@60", "--open-mode=append")
TOLERANCE = 1e-5


@pytest.fixture
def submit(testbed, repo: Path, digits: Path, tmp_path: Path):
    """Submit a training of this name; returns (job, run folder, log)."""

    def start(name: str, options: tuple[str, ...], *extra: str):
        words = [f"bash {repo}/slurm/job.sh train configs/demo.yaml name={name}",
                 f"runs={tmp_path}/runs data={digits}",
                 *(f"'{word}'" for word in (*SETTINGS, *extra))]  # fmt: skip
        log = tmp_path / f"{name}.log"
        job = testbed.submit(
            *OPTIONS, *options, f"--output={log}", f"--job-name={name}",
            f"--export=ALL,SUPERVISOR_PYTHON={sys.executable}", f"--wrap=exec {' '.join(words)}",
        )  # fmt: skip
        return job, RunFolder(tmp_path / "runs" / name), log

    return start


def wait_for_step(testbed, folder: RunFolder, log: Path, step: int, read_losses) -> None:
    deadline = time.monotonic() + 240
    while max(read_losses(folder), default=0) < step:
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.05)


def test_an_interface_that_no_node_has_ends_the_job_with_its_name(
    testbed, submit, monkeypatch
) -> None:
    monkeypatch.setitem(testbed.env, "NETWORK_INTERFACE", "ib7")
    job, _, log = submit("no-interface", ("--nodes=2",))
    facts = testbed.wait(job, "COMPLETED", "FAILED", timeout_s=120)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0"), log.read_text()
    assert "has no interface 'ib7', only lo" in log.read_text()
    assert "change NETWORK_INTERFACE in slurm/site.env" in log.read_text()


def test_a_job_that_comes_back_with_fewer_nodes_goes_on_as_if_nothing_were(
    testbed, submit, read_losses
) -> None:
    job, folder, log = submit("elastic", ("--nodes=2-3",))
    assert testbed.wait(job, "RUNNING")["NumNodes"] == "3"
    wait_for_step(testbed, folder, log, 15, read_losses)
    testbed.ask("scancel", "--batch", "--signal=USR2", job)
    testbed.wait(job, "PENDING", timeout_s=120)
    blocker = testbed.submit("--exclusive", "--nodes=2",
                             "--output=/dev/null", "--wrap=sleep 600")  # fmt: skip
    testbed.wait(blocker, "RUNNING")
    testbed.start_now(job)
    assert testbed.wait(job, "RUNNING", "COMPLETED")["NumNodes"] == "2"
    wait_for_step(testbed, folder, log, 30, read_losses)
    testbed.ask("scancel", blocker)
    facts = testbed.wait(job, "COMPLETED", "FAILED", timeout_s=240)
    text = log.read_text()
    assert facts["JobState"] == "COMPLETED", text[-5000:]
    assert "starts with 3 ranks" in text and "starts with 2 ranks" in text
    assert "MB/s in an all-reduce of 16 MB between 3 nodes over lo (gloo)" in text
    first, second = Ledger(folder).attempts(job)
    assert first.status == "saved" and second.first_step == first.last_step, "no step is lost"

    quiet, whole, quiet_log = submit("quiet", ("--nodes=1",), "strategy={kind: deepspeed}")
    facts = testbed.wait(quiet, "COMPLETED", "FAILED", timeout_s=240)
    assert facts["JobState"] == "COMPLETED", quiet_log.read_text()[-5000:]
    one, other = read_losses(whole), read_losses(folder)
    assert one.keys() == other.keys() == set(range(1, STEPS + 1))
    assert max(abs(one[step] - other[step]) for step in one) < TOLERANCE
    a, b = (read(run.path / f"checkpoints/step-{STEPS:09d}") for run in (folder, whole))
    furthest = max(float((a.ema[name].double() - b.ema[name].double()).abs().max())
                   for name in a.ema)  # fmt: skip
    assert furthest < 1e-4, furthest
