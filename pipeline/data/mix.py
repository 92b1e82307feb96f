"""Mixup and cutmix inside a micro-batch; the partner of a sample is its mirror in the batch.

Source: datasets.py of google/automl, efficientnetv2. Mixup: lambda ~ Beta(a, a) per sample, the
larger of lambda and 1 - lambda. Cutmix: a box with side sqrt(1 - Beta(a, a)) of the image around a
uniform centre, clipped. With both on, the first half is mixed up and the second half cut. The
official cutmix weighs labels by the mean box area of the batch; by default each sample here gets
the weight of its own box (`official_mean` does it their way).
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.data.transfer import upload
from pipeline.spec import Misuse

MIN_GROUP = 4
"""A smaller micro-batch hardly mixes: half of it would be mixed with itself."""


def mix(
    images: Tensor,
    targets: Tensor,
    mixup: float,
    cutmix: float,
    rng: np.random.Generator,
    official_mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return mixed (images, targets) of the same shapes; the inputs are left as they are.

    Args:
        images: (B, C, H, W) floats in any memory format, on any device.
        targets: (B, K) floats, rows that sum to one.
        mixup: alpha; 0 is off.
        cutmix: alpha; 0 is off.
        rng: keyed by (seed, step, micro-batch); all draws are made on the CPU.
        official_mean: weigh cutmix labels by the batch's mean box.

    Raises:
        Misuse: fewer than 4 images with mixing on.
    """
    if mixup <= 0 and cutmix <= 0:
        return images, targets
    if len(images) < MIN_GROUP:
        raise Misuse(
            f"a micro-batch has {len(images)} images: mixup and cutmix need at least {MIN_GROUP}; "
            "raise batch.global_size or lower stages.N.micro_batches"
        )
    if mixup > 0 and cutmix > 0:
        half = len(images) // 2
        first = mix_up(images[:half], targets[:half], mixup, rng)
        second = cut_mix(images[half:], targets[half:], cutmix, rng, official_mean)
        return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
    if mixup > 0:
        return mix_up(images, targets, mixup, rng)
    return cut_mix(images, targets, cutmix, rng, official_mean)


def mix_up(
    images: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image and target with its mirror's by its own lambda."""
    drawn = rng.beta(alpha, alpha, len(images))
    weight = _to(np.maximum(drawn, 1 - drawn), images)
    images = _blend(images, weight.view(-1, 1, 1, 1))
    return images, _blend(targets, weight.to(targets.dtype).view(-1, 1))


def cut_mix(
    images: Tensor,
    targets: Tensor,
    alpha: float,
    rng: np.random.Generator,
    official_mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """Replace a box of each image by its mirror's, and that share of the target."""
    height, width = images.shape[-2:]
    boxes = cut_boxes(len(images), height, width, alpha, rng)
    left, top, right, bottom = upload(torch.from_numpy(boxes), images.device)
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    inside_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < right[:, None])
    mask = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    images = torch.where(mask, images.flip(0), images)
    area = (boxes[2] - boxes[0]) * (boxes[3] - boxes[1]) / (height * width)
    share = np.full_like(area, area.mean()) if official_mean else area
    return images, _blend(targets, _to(1 - share, targets).view(-1, 1))


def cut_boxes(
    count: int, height: int, width: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw (4, count) int64 boxes left, top, right, bottom, clipped to the image."""
    side = np.sqrt(1 - rng.beta(alpha, alpha, count))
    half = np.stack([side * width, side * height]).astype(np.int64) // 2
    centre = np.stack([rng.integers(width, size=count), rng.integers(height, size=count)])
    limit = np.array([[width], [height]])
    start = np.clip(centre - half, 0, limit)
    stop = np.clip(centre + half, 0, limit)
    return np.concatenate([start, stop])


def _blend(values: Tensor, weight: Tensor) -> Tensor:
    return values * weight + values.flip(0) * (1 - weight)


def _to(draws: np.ndarray, like: Tensor) -> Tensor:
    return upload(torch.from_numpy(draws).to(like.dtype), like.device)
