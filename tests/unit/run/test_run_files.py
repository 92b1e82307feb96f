"""Files and run folders: whole or absent, and what an attempt tells of its end."""

from pathlib import Path

import pytest

from pipeline.run.files import read_json, write_atomically, write_json
from pipeline.run.folder import Outcome, RunFolder, Status, this_attempt


def test_a_failed_write_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.run.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "half")
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_a_torn_json_reads_as_absent(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "missing.json") is None


def test_each_attempt_has_an_outcome_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.read_outcome(0) is None
    folder.write_outcome(0, Outcome(Status.SAVED, 12, "SIGUSR2"))
    folder.write_outcome(1, Outcome(Status.DONE, 40))
    assert folder.read_outcome(0) == Outcome(Status.SAVED, 12, "SIGUSR2")
    assert folder.read_outcome(1) == Outcome(Status.DONE, 40)


@pytest.mark.parametrize(
    ("status", "code"),
    [(Status.DONE, 0), (Status.FAILED, 1), (Status.MISUSE, 2), (Status.SAVED, 75)],
)
def test_outcomes_have_the_documented_exit_codes(status: Status, code: int) -> None:
    assert Outcome(status, 0).exit_code == code


def test_the_first_rank_that_fails_names_the_cause(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.read_rank_error(3) == ""
    folder.write_rank_error(3, "ShardError: bad crc in shard-7")
    folder.write_rank_error(3, "RuntimeError: peer is gone")
    assert "bad crc in shard-7" in folder.read_rank_error(3)


def test_the_latest_step_is_read_from_the_pointer(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.latest_step() == -1
    folder.checkpoints.mkdir()
    (folder.checkpoints / "LATEST").write_text("step-000000120\n")
    assert folder.latest_step() == 120


@pytest.mark.parametrize("damage", ["", "step-\n", "\ufffd", "step-12x"])
def test_where_the_pointer_is_damaged_the_folders_tell(tmp_path: Path, damage: str) -> None:
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "LATEST").write_text(damage)
    assert folder.latest_step() == -1
    for name in ("step-000000080", "step-000000120", "step-000000160.1.tmp"):
        (folder.checkpoints / name).mkdir()
    assert folder.latest_step() == 120


def test_the_attempt_number_comes_from_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPELINE_ATTEMPT", raising=False)
    assert this_attempt() == 0
    monkeypatch.setenv("PIPELINE_ATTEMPT", "7")
    assert this_attempt() == 7
