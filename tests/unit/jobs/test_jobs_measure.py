"""`measure`: real trials on this device give a piece of config that fits and can be read back."""

from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.jobs.measure import measure
from pipeline.recipe import Recipe, load_recipe
from pipeline.spec import Misuse, merge

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
OVERRIDES = ("stages.count=2", "batch.global_size=64", "loader.lanes=64")


def recipe(*overrides: str) -> Recipe:
    return load_recipe(DEMO, [*OVERRIDES, *overrides])


def used_gib() -> float:
    return psutil.Process().memory_info().rss / 2**30


def counts(text: str) -> list[int]:
    stages: dict[str, dict[str, int]] = yaml.safe_load(text)["stages"]
    assert list(stages) == ["0", "1"]
    return [stage["micro_batches"] for stage in stages.values()]


def test_with_memory_enough_the_whole_batch_goes_at_once() -> None:
    text = measure(recipe(), 10, ranks=2, memory_gib=used_gib() + 8)
    assert counts(text) == [2, 2]
    for part in ("demo (tiny, fp32) on CPU", "global batch 64, 2 ranks", "16 px, 32 images"):
        assert part in text


def test_less_memory_gives_more_micro_batches_and_the_same_batch() -> None:
    text = measure(recipe("stages.px=[16,128]"), 10, ranks=1, memory_gib=used_gib() + 0.3)
    small, large = counts(text)
    assert small < large
    assert 64 % large == 0


def test_the_text_is_a_piece_of_config() -> None:
    values: dict[str, Any] = recipe().values()
    text = measure(recipe(), 10, ranks=4, memory_gib=used_gib() + 8)
    merged = Recipe.parse(merge(values, yaml.safe_load(text)), "test")
    assert [stage.micro_batches for stage in merged.stages.resolve()] == counts(text) == [4, 4]


def test_single_images_are_not_tried_since_batch_norm_may_have_one_pixel_of_them() -> None:
    """At 8 px the strides leave one; the first stage of the demo does not mix."""
    small = recipe("stages.px=8", "preprocess.eval_px=8")
    assert small.stages.resolve()[0].mixup == 0
    assert min(counts(measure(small, 10, ranks=1, memory_gib=used_gib() + 8))) >= 1


@pytest.mark.parametrize(
    ("overrides", "ranks", "memory_gib", "said"),
    [
        ([], 3, 16.0, "3 ranks"),
        ([], 1, 0.01, "not even"),
        ([], 1, -1.0, "more than 0"),
        (["model.bn_group=2"], 1, 16.0, "model.bn_group"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    overrides: list[str], ranks: int, memory_gib: float, said: str
) -> None:
    with pytest.raises(Misuse, match=said):
        measure(recipe(*overrides), 10, ranks=ranks, memory_gib=memory_gib)
