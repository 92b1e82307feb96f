"""The plan: stages cover all steps, every value follows from the step, contradictions are told."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.plan.plan import Plan
from pipeline.spec import Misuse


def test_stages_cover_every_step_once(plan: Callable[..., Plan]) -> None:
    made = plan(steps=103)
    assert [(s.start, s.end) for s in made.stages] == [(0, 25), (25, 51), (51, 77), (77, 103)]
    assert [s.number for s in made.stages] == [0, 1, 2, 3]


def test_a_step_belongs_to_the_stage_that_starts_with_it(plan: Callable[..., Plan]) -> None:
    made = plan(steps=103)
    assert [made.at(step).stage for step in (0, 24, 25, 50, 51, 76, 77, 102)] == [
        0, 0, 1, 1, 2, 2, 3, 3,
    ]  # fmt: skip
    assert made.stage_at(103).number == 3  # where a finished run resumes


def test_a_step_knows_all_that_depends_on_it(plan: Callable[..., Plan]) -> None:
    at = plan(steps=100).at(60)
    assert at.step == 60
    assert at.epoch == pytest.approx(60 * 64 / 640)
    assert (at.stage, at.px, at.micro_batches) == (2, 27, 4)
    assert (at.randaugment, at.mixup, at.cutmix) == pytest.approx((4.0, 0.4 / 3, 0.0))
    assert at.dropout == pytest.approx(0.2)
    assert at.lr == pytest.approx(0.05)
    assert at.ema_decay == 61 / 70


def test_rates_run_straight_through_the_stages(plan: Callable[..., Plan]) -> None:
    """One stage or four: learning rate and EMA decay of every step are the same."""
    four, one = plan(steps=100), plan(steps=100, stages={"kind": "fixed", "px": 32})
    for step in range(100):
        assert (four.at(step).lr, four.at(step).ema_decay) == (
            one.at(step).lr,
            one.at(step).ema_decay,
        )


def test_the_average_starts_fast_unless_told_otherwise(plan: Callable[..., Plan]) -> None:
    warm = plan(steps=1000)
    assert [warm.at(step).ema_decay for step in (0, 90, 890, 999)] == [0.1, 0.91, 0.99, 0.99]
    cold = plan(steps=1000, ema={"decay": 0.99, "warmup": False})
    assert cold.at(0).ema_decay == 0.99


def test_a_plan_is_the_same_in_a_worker(plan: Callable[..., Plan]) -> None:
    made = plan(steps=50)
    again = pickle.loads(pickle.dumps(made))
    assert [again.at(step) for step in range(50)] == [made.at(step) for step in range(50)]


def test_no_step_outside_the_training(plan: Callable[..., Plan]) -> None:
    for step in (-1, 51):
        with pytest.raises(AssertionError, match="outside 0..50"):
            plan(steps=50).at(step)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 3}, "3 steps cannot hold 4 stages"),
        (
            {"stages": {"kind": "fixed", "px": 32, "micro_batches": 7}},
            "'stages.0.micro_batches' is 7: it must divide batch.global_size 64; .* 8 and 4",
        ),
        (
            {"stages": {"kind": "fixed", "px": 32, "micro_batches": 32, "mixup": 0.1}},
            "micro-batches of 2 images are too few to mix; use at most 16",
        ),
        ({"lr": {"kind": "cosine", "peak": 1.0, "warmup_steps": 60}}, "the training has 50"),
    ],
)
def test_contradictions_name_field_and_remedy(
    plan: Callable[..., Plan], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**{"steps": 50, **changes})


@pytest.mark.parametrize(("smallest", "index", "px"), [(17, 0, 16), (32, 0, 16)])
def test_images_that_the_strides_would_shrink_to_nothing_are_refused(
    plan: Callable[..., Plan], smallest: int, index: int, px: int
) -> None:
    with pytest.raises(Misuse, match=rf"'stages.{index}.px' is {px}: .* of {smallest} px or more"):
        plan(steps=50, smallest_px=smallest)
    assert plan(steps=50, smallest_px=16).total_steps == 50


def test_the_first_stage_that_is_too_small_is_named(plan: Callable[..., Plan]) -> None:
    stages = [{"px": px, "micro_batches": 4} for px in (64, 40, 24)]
    with pytest.raises(Misuse, match=r"'stages.2.px' is 24: .* set stages.2.px=32"):
        plan(steps=50, stages=stages, smallest_px=32)


@pytest.mark.parametrize("steps", range(4, 24))
def test_no_stage_has_zero_steps(plan: Callable[..., Plan], steps: int) -> None:
    """As few steps as there are stages still give one to each."""
    made = plan(steps=steps, lr={"kind": "constant", "peak": 1.0})
    assert all(stage.end > stage.start for stage in made.stages)
    assert sum(stage.end - stage.start for stage in made.stages) == steps


def test_a_step_says_how_labels_of_cut_images_are_weighed(plan: Callable[..., Plan]) -> None:
    stages = {"kind": "fixed", "px": 32, "cutmix": 0.2, "cutmix_labels": "mean"}
    assert plan(steps=50, stages=stages).at(7).cutmix_labels == "mean"
    assert plan(steps=50).at(7).cutmix_labels == "own"


def test_small_micro_batches_pass_where_nothing_is_mixed(plan: Callable[..., Plan]) -> None:
    made = plan(steps=50, stages={"kind": "fixed", "px": 32, "micro_batches": 64})
    assert made.at(0).micro_batches == 64
