"""Durations: one unit each, turned into steps exactly."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan.durations import LengthSpec, exact, make_clock
from pipeline.spec import Misuse


def length(**values: float) -> LengthSpec:
    return LengthSpec.parse(values, "test")


def test_numbers_are_what_was_written() -> None:
    assert exact(2.4) == Fraction(12, 5)
    assert exact(1e-3) == Fraction(1, 1000)


def test_epochs_become_whole_steps_rounded_down() -> None:
    assert length(epochs=10).total_steps(32, 100) == 31
    assert length(epochs=0.1).total_steps(1, 30) == 3  # binary 0.1 * 30 is above 3 by chance
    assert length(epochs=2.3).total_steps(1, 100) == 230  # in floats 229.99999999999997


def test_a_length_never_goes_under_its_least_steps() -> None:
    assert length(epochs=15, min_steps=10_000).total_steps(512, 8_144) == 10_000
    assert length(epochs=15, min_steps=10_000).total_steps(512, 1_256_144) == 36_801
    assert length(steps=5, min_steps=8).total_steps(512, 100) == 8


@given(
    st.integers(1, 10**8), st.integers(1, 10**5), st.integers(1, 4000).map(lambda tenth: tenth / 10)
)
def test_the_last_step_never_reads_more_than_the_epochs_hold(
    samples: int, batch: int, epochs: float
) -> None:
    total = length(epochs=epochs).total_steps(batch, samples)
    assert total * batch <= exact(epochs) * samples < (total + 1) * batch


def test_a_clock_turns_each_unit_into_steps() -> None:
    clock = make_clock(length(epochs=10), 32, 100)
    assert clock.steps(None) == 0
    assert clock.steps(2.4) == Fraction(15, 2)
    assert clock.steps(None, 7) == 7
    assert clock.steps(None, None, 10) == Fraction(31, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of epochs and steps"),
        ({"epochs": 1, "steps": 1}, "exactly one of epochs and steps"),
        ({"epochs": 0}, "greater than 0"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"steps": 1.5}, "integer"),
        ({"epochs": 1, "min_steps": -1}, "greater than or equal to 0"),
        ({"epoch": 1}, "field 'epoch' is unknown"),
    ],
)
def test_wrong_lengths_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Misuse, match=message):
        LengthSpec.parse(values, "test")


@pytest.mark.parametrize(
    ("batch", "samples", "message"),
    [(32, 0, "cannot plan 0 samples"), (0, 32, "batches of 0"), (64, 32, "do not fill one step")],
)
def test_a_data_set_must_fill_a_step(batch: int, samples: int, message: str) -> None:
    with pytest.raises(Misuse, match=message):
        make_clock(length(epochs=1), batch, samples)
