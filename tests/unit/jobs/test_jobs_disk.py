"""Disks that take no more: files may grow to so many bytes, as a full disk or a quota has it."""

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.jobs.disk import naming_disk
from pipeline.run.folder import RunFolder, Status
from pipeline.spec import Failure

SmallDisk = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def small_disk() -> SmallDisk:
    """While inside, no file of this process grows over so many bytes."""

    @contextmanager
    def limited(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def test_the_systems_file_wins_over_the_place(tmp_path: Path) -> None:
    number = errno.ENOSPC
    full = r"^/data/x: No space left on device; make room there, then"
    with pytest.raises(Failure, match=full), naming_disk(tmp_path):
        raise OSError(number, os.strerror(number), "/data/x")
    quota = f"^{tmp_path}: Disk quota exceeded; make room"
    with pytest.raises(Failure, match=quota), naming_disk(tmp_path):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_what_is_no_matter_of_the_disk_passes_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), naming_disk(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    with pytest.raises(OSError, match="no number"), naming_disk(tmp_path):
        raise OSError("no number")


def test_a_page_that_does_not_fit_leaves_the_old_one(
    finished: RunFolder, tmp_path: Path, small_disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.html"
    output.write_text("the old page")
    with small_disk(2_000):
        assert main(["report", str(finished.path), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert f"error: {output}: File too large" in error
    assert "Traceback" not in error
    assert output.read_text() == "the old page"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_export_that_does_not_fit_leaves_nothing_and_can_be_repeated(
    finished: RunFolder, tmp_path: Path, small_disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    with small_disk(100_000):
        assert main(["export", str(finished.path), str(target)]) == 1
    error = capsys.readouterr().err
    assert "model.safetensors: File too large" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
    assert main(["export", str(finished.path), str(target)]) == 0


@pytest.mark.parametrize("num_bytes", [0, 500, 1_500])
def test_a_run_that_cannot_record_its_settings_does_not_start(
    num_bytes: int, small_train, low_digits: Path, tmp_path: Path, small_disk: SmallDisk,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = RunFolder(tmp_path / "runs" / "small")
    with small_disk(num_bytes):
        assert small_train(low_digits, "name=small") == 1
    error = capsys.readouterr().err
    assert str(folder.path) in error and "File too large; raise the limit" in error
    assert "Traceback" not in error
    assert not folder.recipe.exists()
    assert not folder.checkpoints.exists()
    assert not list(folder.path.glob(".*.tmp"))
    assert small_train(low_digits, "name=small") == 0


def test_a_package_that_does_not_fit_is_written_by_the_same_command_later(
    small_train, low_digits: Path, finished: RunFolder, tmp_path: Path, small_disk: SmallDisk,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = RunFolder(tmp_path / "runs" / "finished")
    shutil.copytree(finished.path, folder.path)
    shutil.rmtree(folder.package)
    monkeypatch.setenv("PIPELINE_ATTEMPT", "1")
    with small_disk(300_000):
        assert small_train(low_digits, "name=finished") == 1
    error = capsys.readouterr().err
    assert str(folder.path) in error and "File too large" in error
    assert "Traceback" not in error
    outcome = folder.read_outcome(1)
    assert outcome is not None
    assert (outcome.status, outcome.step) == (Status.FAILED, 6)
    assert not folder.package.exists()
    assert small_train(low_digits, "name=finished") == 0
    ours, theirs = (run.package / "model.safetensors" for run in (folder, finished))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_may_not_be_written_is_named(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    try:
        assert main(["export", str(finished.path), f"{tmp_path}/out"]) == 1
    finally:
        tmp_path.chmod(0o700)
    assert "Permission denied; check who may" in capsys.readouterr().err
