"""Settings of training augmentation, and every random choice of a sample.

Crop, flip and operations of a sample all come from one generator keyed by (seed, epoch, sample
id), in this order, so that workers and ranks cannot change them. A `Draw` is pure numbers; pixels
are made of it elsewhere.
"""

from functools import lru_cache
from math import sqrt
from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from pipeline.data import policies
from pipeline.data.crops import legacy_box, tensorflow_box
from pipeline.data.ops import Op
from pipeline.data.preprocess import Box, Interpolation
from pipeline.spec import Spec

__all__ = ["AugmentSpec", "Draw", "Op", "crop_box", "draw"]


class AugmentSpec(Spec):
    """Crop, flip and a policy; the policy's magnitude comes from the plan, stage by stage.

    The official code takes crop_area from 0.05 and 100 attempts for S to XL; the older models take
    bicubic, 0.08, 10 and AutoAugment (preprocessing.py and preprocess_legacy.py there). Its
    finetuning takes crop "squash", kind "none" and a cutout_fraction of 0.25.
    """

    crop: Literal["random", "tensorflow", "tensorflow_legacy", "squash"] = "random"
    """A random part of the image by PyTorch's rule, by TensorFlow's (what the official code takes;
    `crops.py`), by that with the older models' least tenth; or all of it whatever its shape."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Part of the image's area, smallest and largest."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width by height, smallest and largest."""
    crop_attempts: int = Field(default=10, ge=0)
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    """False samples single points, as TensorFlow's resize does."""
    hflip: bool = True
    kind: Literal["randaugment", "randaugment_torchvision", "autoaugment_v0", "none"] = (
        "randaugment"
    )
    """The official RandAugment; torchvision's (magnitudes 0 to 30); AutoAugment, which has no
    magnitude."""
    num_layers: int = Field(default=2, ge=0)
    warp: Literal["nearest", "bilinear"] = "nearest"
    """How torchvision's rotations and shears take pixels; the official ones take the nearest."""
    reference_px: int | None = Field(default=None, ge=1)
    """Translate and cutout move and hide px whatever the image size, as officially published;
    with a reference size they scale by px / reference_px (for images of 32 px)."""
    color_jitter: float = Field(default=0.0, ge=0)
    """Brightness, contrast and saturation by factors of 1 - this to 1 + this, in random order."""
    cutout_fraction: float = Field(default=0.0, ge=0, le=1)
    """Half the side of a square of noise by px; 0 is off."""
    erase: float = Field(default=0.0, ge=0, le=1)
    """Probability of hiding a random box."""
    erase_with: Literal["noise", "grey"] = "noise"
    device: Literal["cpu", "gpu"] = "cpu"
    """Where the operations are applied: by the workers, or in batches by the GPU."""

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

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if self.warp == "bilinear" and self.kind != "randaugment_torchvision":
            raise ValueError(
                f"warp: bilinear has no effect on kind {self.kind};"
                " take kind: randaugment_torchvision or warp: nearest"
            )
        return self


class Draw(NamedTuple):
    """All that is random about a sample: a box in px of the decoded image, a flip, operations."""

    box: Box
    flip: bool
    ops: tuple[Op, ...]


def draw(
    width: int,
    height: int,
    px: int,
    spec: AugmentSpec,
    magnitude: float,
    rng: np.random.Generator,
) -> Draw:
    """Draw the augmentation of a (width, height) image that becomes (px, px).

    `magnitude` is the policy's, 0 for none (AutoAugment has its own). The order of draws is part of
    every recorded run: crop, flip, policy, jitter, cutout, erasing.
    """
    box = _draw_box(width, height, px, spec, rng)
    flip = spec.hflip and rng.random() < 0.5
    return Draw(box, flip, tuple(_draw_ops(px, spec, magnitude, rng)))


def _draw_box(width: int, height: int, px: int, spec: AugmentSpec, rng: np.random.Generator) -> Box:
    official = spec.crop_area, spec.crop_ratio, spec.crop_attempts, rng
    match spec.crop:
        case "random":
            return crop_box(width, height, spec, rng)
        case "tensorflow":
            return tensorflow_box(width, height, *official)
        case "tensorflow_legacy":
            return legacy_box(width, height, px, *official)
        case "squash":
            return 0, 0, width, height


def _draw_ops(px: int, spec: AugmentSpec, magnitude: float, rng: np.random.Generator) -> list[Op]:
    ops = _draw_policy(px, spec, magnitude, rng)
    ops += policies.color_jitter(spec.color_jitter, rng)
    ops += policies.cutout_noise(px, spec.cutout_fraction, rng)
    ops += policies.erasing(px, spec.erase, spec.erase_with == "noise", rng)
    return ops


def _draw_policy(
    px: int, spec: AugmentSpec, magnitude: float, rng: np.random.Generator
) -> list[Op]:
    match spec.kind:
        case "randaugment":
            return policies.randaugment(px, magnitude, spec.num_layers, rng, spec.reference_px)
        case "randaugment_torchvision":
            bilinear = spec.warp == "bilinear"
            return policies.randaugment_torchvision(px, magnitude, spec.num_layers, rng, bilinear)
        case "autoaugment_v0":
            return policies.autoaugment_v0(px, rng, spec.reference_px)
        case "none":
            return []


def crop_box(width: int, height: int, spec: AugmentSpec, rng: np.random.Generator) -> Box:
    """Draw the crop of a (width, height) image: uniform area, log-uniform ratio.

    Where `crop_attempts` draws do not fit, the largest centred crop of an allowed ratio is taken.
    """
    small, large = spec.crop_area
    narrow, wide = _log(spec.crop_ratio)
    for _ in range(spec.crop_attempts):
        # What rng.uniform draws, bit by bit, in a fifth of its time.
        area = width * height * (small + (large - small) * rng.random())
        ratio = float(np.exp(narrow + (wide - narrow) * rng.random()))
        w, h = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return _centre_box(width, height, spec.crop_ratio)


@lru_cache
def _log(pair: tuple[float, float]) -> tuple[float, float]:
    low, high = np.log(pair).tolist()
    return low, high


def _centre_box(width: int, height: int, ratios: tuple[float, float]) -> Box:
    ratio = min(max(width / height, ratios[0]), ratios[1])
    w = max(1, min(width, round(height * ratio)))
    h = max(1, min(height, round(width / ratio)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
