"""TensorFlow's random crops, which are smaller than PyTorch's for the same settings.

Source: TensorFlow's `sample_distorted_bounding_box` with the whole image as the one object. Where
PyTorch draws an area and throws away what does not fit, TensorFlow draws the ratio evenly, then the
height evenly among those that fit: from 5 % of the area on, a crop of a 500 x 375 image has 34 % of
it on average, PyTorch's 42 %.
"""

from math import sqrt

import numpy as np

from pipeline.data.preprocess import Box, PreprocessSpec

LEGACY_COVERED = 0.1
"""The older preprocessing wants this much of the image in a crop, whatever its smallest area."""
_LEGACY_CENTRE = PreprocessSpec(eval_resize="center")


def tensorflow_box(
    width: int,
    height: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    attempts: int,
    rng: np.random.Generator,
    covered: float = 0.0,
) -> Box:
    """Draw the crop of a (width, height) image; all of it where `attempts` draws do not fit.

    Args:
        area: part of the image's area, smallest and largest.
        ratio: width by height, smallest and largest.
        covered: part of the image that must be in the crop.
    """
    limits = area[0] * width * height, area[1] * width * height
    for _ in range(attempts):
        drawn = ratio[0] + (ratio[1] - ratio[0]) * rng.random()
        w, h = _size(width, height, limits, drawn, rng)
        if w < 1 or h < 1 or w > width or h > height or not limits[0] <= w * h <= limits[1]:
            continue
        # The last place is never taken there, unless it is the only one.
        top = int(rng.integers(height - h)) if h < height else 0
        left = int(rng.integers(width - w)) if w < width else 0
        if w * h >= covered * width * height:
            return left, top, left + w, top + h
    return 0, 0, width, height


def legacy_box(
    width: int,
    height: int,
    px: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    attempts: int,
    rng: np.random.Generator,
) -> Box:
    """Draw the crop of the older models: at least a tenth; instead of all what evaluation takes.

    Source: preprocess_legacy.py of google/automl, efficientnetv2.
    """
    box = tensorflow_box(width, height, area, ratio, attempts, rng, LEGACY_COVERED)
    return _LEGACY_CENTRE.box(width, height, px) if box == (0, 0, width, height) else box


def _size(
    width: int, height: int, limits: tuple[float, float], ratio: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Draw (w, h) of the ratio; rounding that leaves the limits of the area is put right."""
    low, high = (round(sqrt(limit / ratio)) for limit in limits)
    if round(high * ratio) > width:
        high = int((width + 0.5 - 1e-7) / ratio)
        high -= round(high * ratio) > width
    high = min(high, height)
    h = min(low, high)
    h += int(rng.integers(high - h + 1)) if h < high else 0
    h += round(h * ratio) * h < limits[0]
    h -= round(h * ratio) * h > limits[1]
    return round(h * ratio), h
