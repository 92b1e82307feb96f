"""A setting that was changed to no effect is told before the training."""

from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.jobs.idle import without_effect
from pipeline.recipe import load_recipe

IDLE = [
    (("compute.compile_mode=max-autotune",), ("compute.compile=true",), "compute.compile_mode"),
    (("compute.loss_scale=128",), ("compute.precision=fp16",), "compute.loss_scale"),
    (
        ("strategy={kind: deepspeed, persistent_elements: 5}",),
        ("strategy.zero_stage=3",),
        "strategy.persistent_elements",
    ),
    (("stages.cutmix_labels=mean",), ("stages.cutmix=0.5",), "stages.cutmix_labels"),
]


@pytest.mark.parametrize(("words", "used", "field"), IDLE)
def test_what_has_no_effect_is_named_until_it_has_one(
    repo: Path, words: tuple[str, ...], used: tuple[str, ...], field: str
) -> None:
    config = repo / "configs" / "demo.yaml"
    (told,) = without_effect(load_recipe(config, words))
    assert told.startswith(f"{field} ")
    assert list(without_effect(load_recipe(config, (*words, *used)))) == []


def test_no_config_sets_anything_in_vain(repo: Path) -> None:
    for path in sorted((repo / "configs").glob("v*.yaml")):
        assert list(without_effect(load_recipe(path))) == [], path


def test_the_plan_tells_it(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repo)
    words = ["data.num_train=1438", "compute.compile_mode=reduce-overhead"]
    assert main(["plan", "configs/demo.yaml", *words]) == 0
    assert "no effect: compute.compile_mode is reduce-overhead" in capsys.readouterr().out
