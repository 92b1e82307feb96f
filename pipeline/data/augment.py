"""Settings of training augmentation, and the random crop.

Crop, flip and RandAugment of a sample all come from one generator keyed by (seed, epoch, sample
id), in this order, so that workers and ranks cannot change them.
"""

from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.data.preprocess import Box, Interpolation
from pipeline.spec import Spec


class AugmentSpec(Spec):
    """Random-resized crop, flip, RandAugment; its magnitude comes from the plan, stage by stage.

    The official code takes crop_area from 0.05 and 100 attempts for S to XL; the older models take
    bicubic, 0.08 and 10 (preprocessing.py and preprocess_legacy.py there).
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Part of the image's area, smallest and largest."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width by height, smallest and largest."""
    crop_attempts: int = Field(default=10, ge=0)
    interpolation: Interpolation = "bilinear"
    hflip: bool = True
    kind: Literal["randaugment", "none"] = "randaugment"
    num_layers: int = Field(default=2, ge=0)
    reference_px: int | None = Field(default=None, ge=1)
    """Translate and cutout move and hide px whatever the image size, as officially published;
    with a reference size they scale by px / reference_px (for images of 32 px)."""

    @field_validator("crop_area", "crop_ratio")
    @classmethod
    def _check_range(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if not 0 < pair[0] <= pair[1]:
            raise ValueError("expected [smallest, largest], both above 0")
        return pair

    @field_validator("crop_area")
    @classmethod
    def _check_area(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if pair[1] > 1:
            raise ValueError("a crop cannot be larger than the image: at most 1.0")
        return pair


def crop_box(width: int, height: int, spec: AugmentSpec, rng: np.random.Generator) -> Box:
    """Draw the crop of a (width, height) image: uniform area, log-uniform ratio.

    Where `crop_attempts` draws do not fit, the largest centred crop of an allowed ratio is taken.
    """
    log_ratio = np.log(spec.crop_ratio)
    for _ in range(spec.crop_attempts):
        area = width * height * rng.uniform(*spec.crop_area)
        ratio = np.exp(rng.uniform(*log_ratio))
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return _centre_box(width, height, spec.crop_ratio)


def _centre_box(width: int, height: int, ratios: tuple[float, float]) -> Box:
    ratio = min(max(width / height, ratios[0]), ratios[1])
    w = max(1, min(width, round(height * ratio)))
    h = max(1, min(height, round(width / ratio)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
