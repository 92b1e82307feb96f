"""A model of timm through the whole pipeline: plan, train, resume, evaluate, predict, finetune."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.__main__ import main as pipeline
from pipeline.checkpoint.state import equal
from pipeline.checkpoint.store import read
from pipeline.export.package import load_package
from pipeline.run.folder import RunFolder

Run = Callable[..., int]
# Its drop-path and our dropout are on, so that a resume has masks to repeat.
MODEL = ("model=timm/test_resnet", "model.drop_path=0.3")


def scores(folder: RunFolder) -> dict[str, float]:
    return json.loads(folder.evaluation.read_text())


def test_a_baseline_trains_resumes_to_the_bit_and_is_used_like_any_model(
    small_train: Run, low_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_train(low_digits, *MODEL, "name=whole") == 0
    whole, cut = RunFolder(tmp_path / "runs/whole"), RunFolder(tmp_path / "runs/cut")
    assert load_package(whole.package).spec.name == "timm/test_resnet"

    assert small_train(low_digits, *MODEL, "name=cut") == 0
    for file in sorted((cut.checkpoints / "step-000000006").iterdir()):
        file.unlink()
    (cut.checkpoints / "step-000000006").rmdir()
    (cut.checkpoints / "LATEST").write_text("step-000000004\n")
    assert small_train(low_digits, *MODEL, "name=cut") == 0
    name = "checkpoints/step-000000006"
    assert equal(read(cut.path / name), read(whole.path / name))

    capsys.readouterr()
    assert pipeline(["evaluate", str(whole.path), str(low_digits), "--split", "eval"]) == 0
    assert f"top-1 {scores(whole)['top1']:.4f}" in capsys.readouterr().out


def test_a_finetuned_baseline_starts_from_the_trunk(
    small_train: Run,
    low_digits: Path,
    high_digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert small_train(low_digits, *MODEL, "name=base") == 0
    start = f"init={tmp_path / 'runs/base'}"
    assert small_train(high_digits, *MODEL, "name=next", start) == 0
    assert "head rows of 2 of 6 classes taken over" in capsys.readouterr().out
    assert small_train(high_digits, "model=timm/test_efficientnet", "name=wrong", start) == 2
    assert "does not fit model.name=timm/test_efficientnet" in capsys.readouterr().err


def test_the_plan_counts_it(capsys: pytest.CaptureFixture[str], repo: Path) -> None:
    words = ["model=timm/resnet18", "data.num_train=1000", "data.num_classes=10"]
    assert pipeline(["plan", str(repo / "configs/demo.yaml"), *words]) == 0
    out = capsys.readouterr().out
    assert "timm/resnet18, 11,181,642 parameters" in out and "0.037" in out


@pytest.mark.parametrize(
    ("words", "field"),
    [(["stages.2.px=171"], "stages.2.px"), (["preprocess.eval_px=171"], "preprocess.eval_px")],
)
def test_the_plan_refuses_sizes_that_the_training_would(
    words: list[str], field: str, capsys: pytest.CaptureFixture[str], repo: Path
) -> None:
    shape = ["model=timm/test_vit", "stages.px=160", "preprocess.eval_px=160"]
    shape += ["data.num_train=1000", "data.num_classes=10"]
    config = str(repo / "configs/demo.yaml")
    assert pipeline(["plan", config, *shape]) == 0
    assert pipeline(["plan", config, *shape, *words]) == 2
    error = capsys.readouterr().err
    assert f"field '{field}': timm/test_vit does not take images of 171 px" in error
    assert f"set {field}=160" in error


def test_images_that_it_cannot_take_are_refused_before_step_1(
    small_train: Run, low_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_train(low_digits, "model=timm/mixer_s32_224", "name=big") == 2
    assert "field 'stages.0.px': timm/mixer_s32_224 does not take" in capsys.readouterr().err
    assert not (tmp_path / "runs/big/checkpoints").exists()
