"""`pipeline plan` answers before there is anything to train on."""

from pathlib import Path

import pytest

from pipeline.__main__ import main


@pytest.fixture(autouse=True)
def in_repo(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)


def test_without_shards_the_announced_counts_are_planned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = "data={path: /nowhere, name: big, num_train: 50000, num_classes: 100}"
    words = [data, "length={epochs: 11}", "batch.global_size=128", "stages.px=[20,32]"]
    assert main(["plan", "configs/demo.yaml", *words]) == 0
    out = capsys.readouterr().out.replace(",", "")
    assert str(11 * 50_000 // 128) in out
    assert "data big global batch 128" in out
    for px in ("20", "24", "28", "32"):
        assert f" {px} " in out


def test_shards_that_are_there_win_over_what_was_announced(
    low_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data={{path: '{low_digits}', num_train: 5000, num_classes: 99}}"]
    assert main(["plan", "configs/demo.yaml", *words]) == 0
    out = capsys.readouterr().out
    assert str(20 * 72 // 64) in out
    assert str(20 * 5000 // 64) not in out


def test_neither_shards_nor_a_count_is_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "configs/demo.yaml", f"data={tmp_path}/none"]) == 2
    error = capsys.readouterr().err
    assert f"'data.path' is '{tmp_path}/none'" in error
    assert "data_prep build" in error
    assert "data.num_train" in error


def test_a_shard_folder_with_a_broken_manifest_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text("{")
    assert main(["plan", "configs/demo.yaml", f"data={tmp_path}"]) == 2
    assert f"{tmp_path}/manifest.json: cannot be read" in capsys.readouterr().err
