"""Real trainings on the cluster: both strategies over two nodes, and a rank that is killed."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.checkpoint.state import TrainState, equal
from pipeline.checkpoint.store import read
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder
from pipeline.tracking.registry import resolve
from pipeline.tracking.settings import TrackingSpec

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

WARM_UP, COMPARED = 10, 50
STEPS = WARM_UP + COMPARED
LAST = f"checkpoints/step-{STEPS:09d}"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--signal=B:USR2@60")
# The demo's own peak rate, with mixup, dropout and data workers on.
SETTINGS = (
    f"length={{steps: {STEPS}}}", "lr.warmup_epochs=null", f"lr.warmup_steps={WARM_UP}",
    "stages.px=[24, 32]", "stages.randaugment=[0, 0]", "stages.mixup=[0.1, 0.2]",
    "stages.dropout=[0.1, 0.2]", "checkpoint={every_steps: 20}",
    f"evaluate={{every_steps: {STEPS}}}", "tracking.enabled=false",
)  # fmt: skip
ZERO1 = "strategy={kind: deepspeed, zero_stage: 1}"


@dataclass(frozen=True)
class Trainings:
    """Three jobs of the same training: plain, DeepSpeed, and one that loses a rank."""

    plain: RunFolder
    zero1: RunFolder
    killed: RunFolder
    killed_log: str


@pytest.fixture(scope="module")
def trainings(
    testbed,
    repo: Path,
    digits: Path,
    tmp_path_factory: pytest.TempPathFactory,
    read_losses: Callable[[RunFolder], dict[int, float]],
) -> Trainings:
    base = tmp_path_factory.mktemp("trainings")

    def submit(name: str, *extra: str) -> str:
        words = [f"bash {repo}/slurm/job.sh train configs/demo.yaml name={name} runs={base}/runs"]
        words += [f"data={digits}", *(f"'{word}'" for word in (*SETTINGS, *extra))]
        options = [*TWO_NODES, f"--output={base}/{name}.log", f"--job-name={name}"]
        return testbed.submit(
            *options, f"--export=ALL,SUPERVISOR_PYTHON={sys.executable}",
            f"--wrap=exec {' '.join(words)}",
        )  # fmt: skip

    folders = {name: RunFolder(base / "runs" / name) for name in ("plain", "zero1", "killed")}
    killed = submit("killed")
    kill_a_rank_between_checkpoints(folders["killed"], read_losses)
    jobs = [killed, submit("plain")]
    testbed.wait(killed, "COMPLETED", "FAILED", timeout_s=240)
    jobs.append(submit("zero1", ZERO1))
    for job in jobs:
        facts = testbed.wait(job, "COMPLETED", "FAILED", timeout_s=240)
        log = Path(facts["StdOut"]).read_text()
        assert facts["JobState"] == "COMPLETED", log[-5000:]
    return Trainings(**folders, killed_log=(base / "killed.log").read_text())


def kill_a_rank_between_checkpoints(
    folder: RunFolder, read_losses: Callable[[RunFolder], dict[int, float]]
) -> None:
    """Kill -9 rank 1 in the first stage, after step 24 and before the checkpoint at 40."""
    deadline = time.monotonic() + 180
    while max(read_losses(folder), default=0) < 24:
        assert time.monotonic() < deadline, "the training does not get to step 24"
        time.sleep(0.02)
    pids = [pid for pid in rank_processes(folder) if b"SLURM_PROCID=1\0" in environment(pid)]
    assert pids, "rank 1 is not there"
    os.kill(min(pids), signal.SIGKILL)


def rank_processes(folder: RunFolder) -> list[int]:
    """Return the processes that train this run; the lowest number is the rank itself."""
    wanted = f"name={folder.path.name}\0runs={folder.path.parent}\0".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"-m\0pipeline\0train\0" in command and wanted in command:
            found.append(int(entry.name))
    return found


def environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def largest_difference(a: TrainState, b: TrainState, part: str) -> float:
    x, y = getattr(a, part), getattr(b, part)
    assert x.keys() == y.keys()
    return max(float((x[name].double() - y[name].double()).abs().max()) for name in x)


def test_ddp_and_zero1_on_two_nodes_have_the_same_losses(trainings: Trainings, read_losses) -> None:
    x, y = read_losses(trainings.plain), read_losses(trainings.zero1)
    assert x.keys() == y.keys() == set(range(1, STEPS + 1))
    assert max(abs(x[step] - y[step]) for step in range(WARM_UP + 1, STEPS + 1)) < 1e-4
    first = sum(x[step] for step in range(WARM_UP + 1, WARM_UP + 6))
    last = sum(x[step] for step in range(STEPS - 4, STEPS + 1))
    assert last < 0.7 * first, (first, last)


def test_batchnorm_and_averages_of_the_two_strategies_agree(trainings: Trainings) -> None:
    a, b = read(trainings.plain.path / LAST), read(trainings.zero1.path / LAST)
    assert largest_difference(a, b, "buffers") < 1e-4
    assert largest_difference(a, b, "ema") < 1e-4


def test_a_killed_rank_restarts_the_step_and_leaves_no_trace_in_the_weights(
    trainings: Trainings, read_losses
) -> None:
    attempts = list((trainings.killed.path / "attempts").glob("attempt-*.claim"))
    assert len(attempts) == 2, trainings.killed_log[-3000:]
    assert "resuming after step 20" in trainings.killed_log
    killed, plain = trainings.killed, trainings.plain
    assert equal(read(killed.path / LAST), read(plain.path / LAST))
    assert read_losses(killed) == read_losses(plain)


def test_the_shipped_script_with_overrides_trains_saves_evaluates_and_registers(
    testbed, repo: Path, digits: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    job = testbed.submit(
        "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1",
        f"--output={tmp_path}/job.log", f"--export=ALL,SUPERVISOR_PYTHON={sys.executable}",
        repo / "launch" / "v2_l_21k.sh", f"data={digits}", "model=tiny", f"runs={tmp_path}/runs",
        "name=small", "length={steps: 12}", "lr.warmup_epochs=null", "lr.warmup_steps=2",
        "batch.global_size=64", "stages.micro_batches=4", "stages.px=[16, 32]",
        "preprocess.eval_px=32", "preprocess.eval_resize=squash", "compute.precision=fp32",
        "loader.workers=1", f"tracking.uri={uri}", "tracking.register_as=small",
    )  # fmt: skip
    facts = testbed.wait(job, "COMPLETED", "FAILED", timeout_s=180)
    log = (tmp_path / "job.log").read_text()
    assert facts["JobState"] == "COMPLETED", log[-5000:]
    assert "2 of 2 ranks on 2 nodes answered" in log
    folder = RunFolder(tmp_path / "runs" / "small")
    assert folder.latest_step() == 12
    evaluation = read_json(folder.evaluation)
    assert evaluation is not None
    assert evaluation["num_images"] == sum(map(sum, evaluation["confusion"])) == 359
    version = resolve("models:/small@candidate", TrackingSpec(uri=uri))
    registered = read_json(folder.path / "registered.json")
    assert registered is not None
    assert version.digest == registered["digest"]
