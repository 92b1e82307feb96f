"""`pipeline train` in one process: to the end, stopped, resumed, failed, and run by two at once."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoint.store import Store
from pipeline.engine.loop import StepReport
from pipeline.jobs import training
from pipeline.jobs.progress import Progress
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder, Status

TOTAL = 6
Losses = Callable[[RunFolder], dict[int, float]]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "finished")


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Call something once a step was reported: `at_step(3, action)`."""

    def install(step: int, action: Callable[[], None]) -> None:
        report_step = Progress.step

        def told(self: Progress, report: StepReport) -> None:
            report_step(self, report)
            if report.step == step:
                action()

        monkeypatch.setattr(Progress, "step", told)

    return install


def weights(folder: RunFolder) -> bytes:
    return (folder.package / "model.safetensors").read_bytes()


def test_a_run_leaves_what_the_later_jobs_need(finished: RunFolder, read_losses: Losses) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert names >= {"recipe.yaml", "plan.txt", "evaluation.json", "package", "spool"}
    assert finished.latest_step() == TOTAL
    assert sorted(read_losses(finished)) == [1, 2, 3, 4, 5, 6]
    evaluation = read_json(finished.evaluation)
    assert evaluation is not None
    assert (evaluation["step"], evaluation["num_images"]) == (TOTAL, 108)
    assert evaluation["classes"] == ["0", "1", "2", "3", "4", "5"]
    assert sum(map(sum, evaluation["confusion"])) == 108
    facts = read_json(finished.package / "facts.json")
    assert facts is not None
    assert (facts["run"], facts["step"], facts["parent"]) == ("finished", TOTAL, None)
    assert facts["top1"] == evaluation["top1"]
    lease = read_json(finished.lease)
    assert lease is not None
    assert lease["released"]
    assert not list(finished.path.rglob("*.tmp"))


def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(
    small_train, low_digits: Path, folder: RunFolder, finished: RunFolder, read_losses: Losses,
    at_step, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PIPELINE_ATTEMPT", "0")
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    assert small_train(low_digits, "name=finished", "checkpoint={every_steps: 100}") == 75
    outcome = folder.read_outcome(0)
    assert outcome is not None
    assert (outcome.status, outcome.reason) == (Status.SAVED, "SIGUSR2")
    assert 2 < outcome.step < TOTAL
    assert outcome.step == folder.latest_step()
    assert not folder.package.exists()
    assert "run the same command again" in capsys.readouterr().out

    monkeypatch.setenv("PIPELINE_ATTEMPT", "1")
    assert small_train(low_digits, "name=finished") == 0
    assert f"resuming after step {outcome.step} (attempt 1, 1 ranks)" in capsys.readouterr().out
    ended = folder.read_outcome(1)
    assert ended is not None
    assert (ended.status, ended.step) == (Status.DONE, TOTAL)
    assert weights(folder) == weights(finished)
    assert read_losses(folder) == read_losses(finished)


def test_a_finished_run_is_not_trained_again(
    small_train, low_digits: Path, folder: RunFolder, finished: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(finished.path, folder.path)

    def never(*_: object) -> None:
        pytest.fail("images are read for a run that is done")

    monkeypatch.setattr(training, "_loader", never)
    monkeypatch.setenv("PIPELINE_ATTEMPT", "4")
    assert small_train(low_digits, "name=finished") == 0
    outcome = folder.read_outcome(4)
    assert outcome is not None
    assert (outcome.status, outcome.step) == (Status.DONE, TOTAL)
    assert weights(folder) == weights(finished)


def test_a_killed_end_is_made_up_for(
    small_train, low_digits: Path, folder: RunFolder, finished: RunFolder
) -> None:
    shutil.copytree(finished.path, folder.path)
    shutil.rmtree(folder.package)
    folder.evaluation.unlink()
    (folder.path / ".package.new").mkdir()
    (folder.checkpoints / "step-000000007.tmp").mkdir()
    assert small_train(low_digits, "name=finished") == 0
    assert weights(folder) == weights(finished)
    assert read_json(folder.evaluation) == read_json(finished.evaluation)
    assert not list(folder.path.glob(".package*"))
    assert not list(folder.checkpoints.glob("*.tmp"))


def test_a_failure_is_told_to_the_supervisor_and_frees_the_run(
    small_train, low_digits: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def broken(*_: object) -> None:
        raise RuntimeError("the sky fell")

    monkeypatch.setattr(training, "_loop", broken)
    monkeypatch.setenv("PIPELINE_ATTEMPT", "2")
    assert small_train(low_digits, "name=finished") == 1
    assert "error: RuntimeError: the sky fell" in capsys.readouterr().err
    outcome = folder.read_outcome(2)
    assert outcome is not None
    assert (outcome.status, outcome.step) == (Status.FAILED, 0)
    assert outcome.reason == "RuntimeError: the sky fell"
    lease = read_json(folder.lease)
    assert lease is not None
    assert lease["released"]


def test_a_damaged_shard_is_named_and_a_whole_one_goes_on(
    small_train, low_digits: Path, tmp_path: Path, folder: RunFolder,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = tmp_path / "data"
    shutil.copytree(low_digits, data)
    (tar,) = (data / "train").glob("*.tar")
    whole = tar.read_bytes()
    tar.write_bytes(whole.replace(b"\xff\xda", b"\xff\xdb"))
    assert small_train(data, "name=finished") == 1
    error = capsys.readouterr().err
    assert f"{tar}" in error
    assert "crc32c" in error
    assert not folder.package.exists()
    tar.write_bytes(whole)
    assert small_train(data, "name=finished") == 0


def test_a_disk_that_fills_up_keeps_the_older_checkpoint_and_room_lets_it_go_on(
    small_train, low_digits: Path, folder: RunFolder, finished: RunFolder,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write = Store._write

    def full(self: Store, target: Path, state, facts) -> None:
        write(self, target, state, facts)
        if state.step > 2:
            (target / "manifest.json").unlink()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(Store, "_write", full)
    monkeypatch.setenv("PIPELINE_ATTEMPT", "0")
    assert small_train(low_digits, "name=finished") == 1
    shown = capsys.readouterr()
    assert f"{folder.checkpoints}: checkpoint not written" in shown.out
    assert "No space left" in shown.out
    assert "make room there" in shown.out
    assert "the last checkpoint, at step 6, could not be written" in shown.err
    outcome = folder.read_outcome(0)
    assert outcome is not None
    assert (outcome.status, outcome.step) == (Status.FAILED, 2)
    assert [path.name for path in folder.checkpoints.glob("step-*")] == ["step-000000002"]
    assert not folder.package.exists()
    assert not folder.evaluation.exists()

    monkeypatch.setattr(Store, "_write", write)
    assert small_train(low_digits, "name=finished") == 0
    assert "resuming after step 2" in capsys.readouterr().out
    assert weights(folder) == weights(finished)


def test_a_second_job_is_refused_while_one_trains(
    small_train, small: tuple[str, ...], low_digits: Path, folder: RunFolder, at_step,
    finished: RunFolder,
) -> None:  # fmt: skip
    words = (f"data={low_digits}", f"runs={folder.path.parent}", "name=finished", *small)
    command = [sys.executable, "-m", "pipeline", "train", "configs/demo.yaml", *words]
    second: list[subprocess.CompletedProcess[str]] = []

    def start() -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
        second.append(done)

    at_step(3, start)
    assert small_train(low_digits, "name=finished") == 0
    (refused,) = second
    assert refused.returncode == 2, refused.stderr
    assert f"error: {folder.lease}" in refused.stderr
    assert f"process {os.getpid()}" in refused.stderr
    assert "another name=" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert weights(folder) == weights(finished)
