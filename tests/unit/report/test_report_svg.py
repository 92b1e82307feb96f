"""Axes: round ticks inside their range, numbers that fit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report.svg import Scale, nice_ticks, path, short, text_of


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 1200, [0, 200, 400, 600, 800, 1000, 1200]),
        (0.28, 1.0, [0.4, 0.6, 0.8, 1.0]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high, 5) == pytest.approx(ticks)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e9))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width, 5)
    assert len(ticks) <= 9
    assert all(low - width * 1e-6 <= tick <= low + width * (1 + 1e-6) for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1e-5, "1e-5"), (2.5e-4, "2.5e-4"), (1200, "1.2k"), (3e6, "3M")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_scales_map_ends_and_survive_an_empty_range() -> None:
    scale = Scale(10, 20, 100, 0)
    assert (scale(10), scale(20), scale(15)) == (100, 0, 50)
    assert Scale(5, 5, 0, 10)(5) == 5


def test_text_is_escaped_for_elements_and_attributes() -> None:
    assert text_of("<a href='x\">&") == "&lt;a href=&#x27;x&quot;&gt;&amp;"
    assert path([(1, 2), (3.14159, 4)]) == "M1.0 2.0L3.1 4.0"
