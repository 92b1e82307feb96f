"""Times in words."""

import pytest

from pipeline.run.clock import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "60 s"),
        (200, "3:20 min"),
        (7500, "2:05 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
