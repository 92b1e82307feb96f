"""Random crops with the distribution of TensorFlow's, worked out on paper.

Source: `sample_distorted_bounding_box` (tensorflow/core/kernels/image): the ratio is uniform, the
height uniform among the whole numbers that keep area and image, width is their product rounded,
offsets are uniform below the last. preprocess_legacy.py of google/automl adds a least tenth.
"""

from collections import Counter

import numpy as np
import pytest

from pipeline.data.augment import AugmentSpec, crop_box
from pipeline.data.crops import legacy_box, tensorflow_box

RATIO = (0.75, 1.33)


def boxes(
    width: int,
    height: int,
    count: int = 20_000,
    area: tuple[float, float] = (0.05, 1.0),
    ratio: tuple[float, float] = RATIO,
) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([tensorflow_box(width, height, area, ratio, 100, rng) for _ in range(count)])


def sizes(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return drawn[:, 2] - drawn[:, 0], drawn[:, 3] - drawn[:, 1]


@pytest.mark.parametrize(("width", "height"), [(500, 375), (64, 64), (1000, 100), (9, 800)])
def test_crops_keep_the_image_the_area_and_the_ratio(width: int, height: int) -> None:
    drawn = boxes(width, height, 3_000)
    wide, high = sizes(drawn)
    assert drawn.min() >= 0 and drawn[:, 2].max() <= width and drawn[:, 3].max() <= height
    whole = (wide == width) & (high == height)  # what is taken where nothing fits
    assert (whole | (wide * high >= 0.05 * width * height)).all()
    assert (whole | (np.abs(wide - 1.04 * high) <= 0.29 * high + 1)).all()


def test_with_one_ratio_every_height_is_as_likely() -> None:
    """A square of 20 px: from sqrt(0.05) * 20 = 4.5 (and 20 to hold, so 5) to 20."""
    wide, high = sizes(boxes(20, 20, 32_000, ratio=(1.0, 1.0)))
    assert np.array_equal(wide, high)
    counts = Counter(high.tolist())
    assert min(counts) == 5 and max(counts) == 20
    # The lowest is drawn as 4 (16 px, too small by the limit of 20) or as 5: twice as often.
    expected = {height: 32_000 / 17 * (2 if height == 5 else 1) for height in range(5, 21)}
    squared = sum((counts[h] - expected[h]) ** 2 / expected[h] for h in expected)
    assert squared < 37.7  # 15 degrees of freedom, 0.1 %


def test_offsets_are_even_and_leave_out_the_last() -> None:
    drawn = boxes(12, 12, 20_000, ratio=(1.0, 1.0), area=(0.25, 0.25))  # 6 x 6 always
    assert set(zip(*(side.tolist() for side in sizes(drawn)), strict=True)) == {(6, 6)}
    for axis in (0, 1):
        counts = np.bincount(drawn[:, axis])
        assert len(counts) == 6 and abs(counts / 20_000 - 1 / 6).max() < 0.012


def test_crops_are_smaller_than_pytorchs() -> None:
    """The mean area by integrating over ratio and height, and PyTorch's by drawing."""
    areas = []
    for ratio in np.linspace(*RATIO, 201):
        low, high = np.sqrt(0.05 * 500 * 375 / ratio), min(375, 500 / ratio)
        heights = np.linspace(low, high, 201)
        areas.append((ratio * heights**2).mean() / (500 * 375))
    expected = float(np.mean(areas))
    wide, high = sizes(boxes(500, 375))
    assert (wide * high).mean() / (500 * 375) == pytest.approx(expected, abs=0.006)
    assert expected == pytest.approx(0.34, abs=0.005)
    spec, rng = AugmentSpec(crop_area=(0.05, 1.0), crop_attempts=100), np.random.default_rng(0)
    theirs = np.array([crop_box(500, 375, spec, rng) for _ in range(5_000)])
    wide, high = sizes(theirs)
    assert (wide * high).mean() / (500 * 375) == pytest.approx(0.42, abs=0.015)


def test_where_nothing_fits_the_whole_image_is_taken() -> None:
    """Ten times as wide as high: a tenth of it times 1.33 at most, so no crop has a half."""
    assert set(map(tuple, boxes(1000, 100, 50, area=(0.5, 1.0)))) == {(0, 0, 1000, 100)}


def test_the_older_models_see_at_least_a_tenth_and_the_centre_instead_of_all() -> None:
    rng = np.random.default_rng(1)
    drawn = np.array(
        [legacy_box(500, 375, 224, (0.08, 1.0), (3 / 4, 4 / 3), 10, rng) for _ in range(4_000)]
    )
    wide, high = sizes(drawn)
    assert (wide * high).min() >= 0.1 * 500 * 375
    assert (wide * high).min() < 0.11 * 500 * 375
    centre = legacy_box(1000, 100, 224, (0.5, 1.0), (3 / 4, 4 / 3), 10, rng)
    assert centre == (457, 7, 544, 94)  # 0.875 of 100 px, odd pixels to the left and above
