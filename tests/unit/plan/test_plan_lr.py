"""Learning rates: warmup from zero, decay counted from step 0, stairs of part of an epoch."""

import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan.durations import LengthSpec, make_clock
from pipeline.plan.lr import LrSchedule, LrSpec, make_schedule
from pipeline.spec import Misuse


def schedule(total: int = 1000, epoch: int = 100, **values: Any) -> LrSchedule:
    """A schedule of `total` steps, `epoch` of them in each epoch."""
    clock = make_clock(LengthSpec.parse({"steps": total}, "test"), 1, epoch)
    return make_schedule(LrSpec.parse(values, "test"), clock)


def test_warmup_rises_from_zero_in_equal_steps() -> None:
    made = schedule(kind="constant", peak=0.5, warmup_steps=10)
    assert [made.lr_at(step) for step in (0, 1, 5, 10, 999)] == [0, 0.05, 0.25, 0.5, 0.5]


@pytest.mark.parametrize(
    "warmup", [{"warmup_epochs": 0.5}, {"warmup_steps": 50}, {"warmup_percent": 5}]
)
def test_a_warmup_may_be_given_in_three_units(warmup: dict[str, Any]) -> None:
    assert schedule(kind="constant", peak=1.0, **warmup).warmup_steps == 50


def test_decay_counts_from_the_first_step_not_from_the_end_of_the_warmup() -> None:
    made = schedule(kind="cosine", peak=1.0, warmup_steps=500)
    assert made.lr_at(500) == pytest.approx(0.5)
    linear = schedule(kind="linear", peak=1.0, warmup_steps=500)
    assert linear.lr_at(750) == pytest.approx(0.25)


def test_cosine_and_linear_end_at_zero_or_the_minimum() -> None:
    for kind in ("cosine", "linear"):
        assert schedule(kind=kind, peak=1.0).lr_at(1000) == pytest.approx(0, abs=1e-12)
        assert schedule(kind=kind, peak=1.0, minimum=0.2).lr_at(1000) == 0.2
        assert schedule(kind=kind, peak=1.0).lr_at(500) == pytest.approx(0.5)


def test_exponential_decay_is_a_staircase() -> None:
    made = schedule(kind="exponential", peak=1.0, decay_rate=0.5, decay_steps=10)
    assert [made.lr_at(step) for step in (0, 9, 10, 19, 20)] == [1, 1, 0.5, 0.5, 0.25]


def test_stairs_may_be_a_part_of_an_epoch() -> None:
    """2.4 epochs of 306.68 steps are 736.03: the first stair ends with step 736."""
    clock = make_clock(LengthSpec.parse({"epochs": 350}, "test"), 4096, 1_256_144)
    values = {"kind": "exponential", "peak": 1.0, "decay_rate": 0.5, "decay_epochs": 2.4}
    made = make_schedule(LrSpec.parse(values, "test"), clock)
    assert (made.lr_at(736), made.lr_at(737)) == (1.0, 0.5)


@given(st.integers(0, 999), st.sampled_from(["cosine", "linear", "constant"]))
def test_no_rate_leaves_its_range(step: int, kind: str) -> None:
    made = schedule(kind=kind, peak=0.3, minimum=0.01, warmup_steps=7)
    assert 0 <= made.lr_at(step) <= 0.3
    assert step < 7 or made.lr_at(step) >= 0.01


def test_a_schedule_can_be_sent_to_a_worker() -> None:
    made = schedule(kind="cosine", peak=1.0, warmup_percent=3)
    assert pickle.loads(pickle.dumps(made)).lr_at(123) == made.lr_at(123)


def test_a_cosine_is_the_released_formula() -> None:
    made = schedule(kind="cosine", peak=0.128)
    assert made.lr_at(300) == pytest.approx(0.128 * 0.5 * (1 + math.cos(math.pi * 0.3)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "cosine", "peak": 0}, "greater than 0"),
        ({"kind": "cosine", "peak": 1, "warmup_steps": 1, "warmup_epochs": 1}, "give one of"),
        ({"kind": "cosine", "peak": 1, "minimum": 2}, "minimum 2.0 is above peak 1.0"),
        ({"kind": "cosine", "peak": 1, "decay_rate": 0.9}, "no effect with kind 'cosine'"),
        ({"kind": "exponential", "peak": 1}, "needs decay_rate"),
        ({"kind": "exponential", "peak": 1, "decay_rate": 0.9}, "needs decay_rate and one of"),
        (
            {"kind": "exponential", "peak": 1, "decay_rate": 2, "decay_steps": 1},
            "less than or equal to 1",
        ),
        (
            {
                "kind": "exponential",
                "peak": 1,
                "decay_rate": 1,
                "decay_steps": 1,
                "decay_epochs": 1,
            },
            "one of decay_epochs",
        ),
        ({"kind": "step", "peak": 1}, "'exponential', 'cosine', 'linear' or 'constant'"),
        ({"kind": "cosine", "peak": float("inf")}, "finite"),
    ],
)
def test_wrong_schedules_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Misuse, match=message):
        schedule(**values)


def test_a_warmup_as_long_as_the_training_is_refused() -> None:
    with pytest.raises(Misuse, match="warmup takes 1000 steps, but the training has 1000"):
        schedule(kind="cosine", peak=1.0, warmup_epochs=10)
