"""A run that is killed and started again ends with the same weights, to the bit."""

import os
import signal
import time

import pytest

from pipeline.checkpoint.state import equal
from pipeline.checkpoint.store import read
from pipeline.run.folder import Status

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# Four stages of 12 steps and three checkpoints. Mixup, dropout and data workers are on.
STEPS, SAVED = 48, 16
SETTINGS = (
    f"length={{steps: {STEPS}}}",
    "batch.global_size=64",
    "lr.warmup_epochs=1",
    "stages.count=4",
    "stages.micro_batches=4",
    "stages.mixup=[0.1, 0.3]",
    "stages.dropout=[0.1, 0.3]",
    "loader.workers=1",
    f"checkpoint={{every_steps: {SAVED}, keep: 3}}",
    f"evaluate={{every_steps: {STEPS}}}",
)
STRATEGIES = {
    "ddp": "strategy=ddp",
    "zero1": "strategy={kind: deepspeed, zero_stage: 1}",
    "zero3": "strategy={kind: deepspeed, zero_stage: 3, persistent_elements: 500}",
    "fsdp": "strategy=fsdp",
}
CASES = [("ddp", 2), ("ddp", 4), ("zero1", 2), ("zero1", 4), ("zero3", 2), ("fsdp", 2)]
KILL_FROM, LAST_STAGE = 20, 36
LAST = f"checkpoints/step-{STEPS:09d}"


def wait_for_step(launcher, name: str, step: int, ranks, read_losses) -> None:
    deadline = time.monotonic() + 120
    while max(read_losses(launcher.folder(name)), default=0) < step:
        assert time.monotonic() < deadline, ranks.text()[-4000:]
        assert all(process.poll() is None for process in ranks.processes), ranks.text()[-4000:]
        time.sleep(0.02)


@pytest.mark.parametrize(("strategy", "world"), CASES)
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    launcher, references, read_losses, strategy: str, world: int
) -> None:
    settings = (*SETTINGS, STRATEGIES[strategy])
    whole = references.run_once(f"{strategy}-{world}", world, *settings)

    ranks = launcher.start("killed", world, *settings)
    wait_for_step(launcher, "killed", KILL_FROM, ranks, read_losses)
    os.kill(ranks.processes[-1].pid, signal.SIGKILL)
    codes = ranks.wait()
    folder = launcher.folder("killed")
    assert codes[-1] == -signal.SIGKILL
    assert all(code != 0 for code in codes)
    assert folder.latest_step() == SAVED, "the kill must fall between two checkpoints"
    assert KILL_FROM <= max(read_losses(folder)) < LAST_STAGE

    launcher.run("killed", world, *settings)
    assert equal(read(folder.path / LAST), read(whole.path / LAST))
    assert read_losses(folder) == read_losses(whole)


def test_a_signal_loses_no_step_and_the_same_command_goes_on(
    launcher, references, read_losses
) -> None:
    settings = (*SETTINGS, STRATEGIES["ddp"])
    whole = references.run_once("ddp-2", 2, *settings)
    ranks = launcher.start("stopped", 2, *settings)
    wait_for_step(launcher, "stopped", KILL_FROM, ranks, read_losses)
    ranks.processes[1].send_signal(signal.SIGUSR2)
    assert ranks.wait() == [75, 75]
    folder = launcher.folder("stopped")
    outcome = folder.read_outcome(0)
    assert outcome is not None
    assert outcome.status is Status.SAVED
    assert outcome.step == folder.latest_step() == max(read_losses(folder)) > KILL_FROM
    launcher.run("stopped", 2, *settings)
    assert equal(read(folder.path / LAST), read(whole.path / LAST))


def test_a_finished_run_is_not_trained_again(launcher, read_losses) -> None:
    settings = ("length={steps: 8}", "lr.warmup_epochs=0.2", "checkpoint={every_steps: 4}")
    folder = launcher.run("once", 2, *settings)
    before = (folder.checkpoints / "step-000000008/state.json").stat().st_mtime_ns
    launcher.run("once", 2, *settings)
    assert (folder.checkpoints / "step-000000008/state.json").stat().st_mtime_ns == before
