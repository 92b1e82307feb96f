"""The jobs that use a finished model: evaluate, predict, export; by package, run or registry."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.__main__ import main
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import ShardReader
from pipeline.export.package import load_package
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder
from tests.unit.data.faulty_server import serving


@pytest.fixture
def pictures(low_digits: Path, tmp_path: Path) -> list[Path]:
    """Three digits as files, and between them one that is no picture and one that is not there."""
    read = ShardReader(SplitIndex(low_digits, load_manifest(low_digits), "eval")).read
    paths = [tmp_path / f"digit-{number}.jpg" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(read(number))
    (tmp_path / "torn.jpg").write_bytes(paths[0].read_bytes()[:90])
    return [paths[0], tmp_path / "torn.jpg", paths[1], tmp_path / "gone.jpg", paths[2]]


def evaluated(out: str) -> str:
    (line,) = [line for line in out.splitlines() if "top-1" in line]
    return line


def test_evaluation_finds_the_scores_that_the_training_recorded(
    finished: RunFolder, low_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = read_json(finished.evaluation)
    assert recorded is not None
    assert main(["evaluate", str(finished.path), str(low_digits), "--batch", "50"]) == 0
    line = evaluated(capsys.readouterr().out)
    assert f"top-1 {recorded['top1']:.4f}, top-5 {recorded['top5']:.4f}" in line
    assert "108 images" in line
    assert "at 16 px" in line
    words = ["--split", "train", "--px", "24"]
    assert main(["evaluate", str(finished.package), str(low_digits), *words]) == 0
    line = evaluated(capsys.readouterr().out)
    assert "on train" in line
    assert "72 images" in line
    assert "at 24 px" in line


def test_shards_of_a_url_are_brought_to_the_folder_that_is_named(
    finished: RunFolder, low_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(low_digits) as server:
        words = ["evaluate", str(finished.path), server.url]
        assert main([*words, "--cache", str(tmp_path / "cache")]) == 0
        line = evaluated(capsys.readouterr().out)
        assert f"on eval of {server.url}" in line and "108 images" in line
        assert main(words) == 2
        assert "--cache" in capsys.readouterr().err


def test_a_model_of_other_classes_is_not_scored(
    finished: RunFolder, high_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished.path), str(high_digits)]) == 2
    error = capsys.readouterr().err
    for words in (str(high_digits), "'high' (6 classes)", "('low', 6 classes)", "finetune"):
        assert words in error


def test_missing_shards_splits_and_models_are_named(
    finished: RunFolder, low_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data, none = str(finished.path), str(low_digits), f"{tmp_path}/none"
    for arguments, words in (
        ([run, none], f"{none}: no such folder of shards"),
        ([run, data, "--split", "test"], "no split 'test'; it has: "),
        ([none, data], f"{none}: no such package folder"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_a_broken_image_is_named_and_the_others_are_predicted(
    finished: RunFolder, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(path) for path in pictures]
    assert main(["predict", *names, "--model", str(finished.path), "--top", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == names
    assert ["error" in line for line in lines] == [False, True, False, True, False]
    assert "No such file" in lines[3]
    words = lines[0].partition(": ")[2].split()
    assert len(words) == 4
    assert words[0] in "012345"
    assert 0.0 < float(words[3]) <= float(words[1]) <= 1.0
    assert main(["predict", names[0], "--model", str(finished.package)]) == 0


def test_a_model_that_is_not_there_or_was_altered_predicts_nothing(
    a_finished_run: RunFolder, pictures: list[Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    picture = str(pictures[0])
    assert main(["predict", picture, "--model", f"{tmp_path}/none"]) == 2
    assert "no such package folder" in capsys.readouterr().err
    weights = a_finished_run.package / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["predict", picture, "--model", str(a_finished_run.path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"error: {weights}: sha256 is " in shown.err


def test_an_exported_model_needs_nothing_else_and_is_the_same(
    a_finished_run: RunFolder, finished: RunFolder, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "deep" / "out"
    assert main(["export", str(a_finished_run.path), str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    shutil.rmtree(a_finished_run.path)
    ours, theirs = load_package(out), load_package(finished.package)
    assert ours.digest == theirs.digest
    images = torch.from_numpy(_noise())
    assert torch.equal(ours.logits(images), theirs.logits(images))


def test_an_existing_target_is_left_alone(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["export", str(finished.path), str(tmp_path)]) == 2
    assert f"{tmp_path}: exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_cannot_be_exported_leaves_no_folder(
    a_finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    (a_finished_run.package / "labels.json").write_text("{}")
    assert main(["export", str(a_finished_run.path), str(target)]) == 1
    assert "labels.json: sha256 is " in capsys.readouterr().err
    assert main(["export", f"{tmp_path}/none", str(target)]) == 2
    assert not target.exists()


def _noise():
    import numpy as np

    picture = Image.effect_noise((16, 16), 80.0).convert("RGB")
    return np.stack([np.asarray(picture), 255 - np.asarray(picture)])
