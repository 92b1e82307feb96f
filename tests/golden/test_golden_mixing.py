"""Mixup and cutmix against a second writing of the official formulas, in numpy with 64-bit floats.

Source: datasets.py of google/automl, efficientnetv2: `mixup`, `cutmix_mask`, `cutmix`, `mixing`.
Draws come from the same generator, so that the formulas alone are compared.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.data.mix import mix
from pipeline.plan.draws import Stream, keyed

Array = NDArray[np.float64]
B, PX, CLASSES = 12, 30, 7


def official_mixup(
    image: Array, label: Array, alpha: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Weigh each image with the larger of lambda and 1 - lambda, its mirror with the rest."""
    weight = rng.beta(alpha, alpha, size=len(image))
    weight = np.maximum(weight, 1.0 - weight)
    by_image, by_label = weight.reshape(-1, 1, 1, 1), weight.reshape(-1, 1)
    mixed = image * by_image + image[::-1] * (1.0 - by_image)
    return mixed, label * by_label + label[::-1] * (1.0 - by_label)


def official_masks(count: int, alpha: float, rng: np.random.Generator) -> Array:
    """Return (count, 1, PX, PX): ones in a box of side sqrt(1 - area) around a centre, clipped."""
    area = rng.beta(alpha, alpha, size=count)
    side = (np.sqrt(1.0 - area) * PX).astype(int)
    xs, ys = rng.integers(PX, size=count), rng.integers(PX, size=count)
    masks = np.zeros((count, 1, PX, PX))
    for i in range(count):
        x1, x2 = (np.clip(xs[i] + sign * (side[i] // 2), 0, PX) for sign in (-1, 1))
        y1, y2 = (np.clip(ys[i] + sign * (side[i] // 2), 0, PX) for sign in (-1, 1))
        masks[i, 0, y1:y2, x1:x2] = 1.0
    return masks


def official_cutmix(
    image: Array, label: Array, masks: Array, mean: bool = True
) -> tuple[Array, Array]:
    """Paste by the mask; labels by the mean of all masks, or each by the mean of its own."""
    share = masks.mean(axis=(1, 2, 3), keepdims=True)[..., 0, 0]
    share = np.full_like(share, masks.sum() / masks.size) if mean else share
    mixed = (1.0 - masks) * image + masks * image[::-1]
    return mixed, (1.0 - share) * label + share * label[::-1]


def drawn() -> tuple[Array, Array]:
    rng = np.random.default_rng(4)
    return rng.normal(size=(B, 3, PX, PX)), rng.dirichlet(np.ones(CLASSES), size=B)


def ours(mixup: float, cutmix: float, mean: bool, dtype: torch.dtype) -> tuple[Array, Array]:
    images, labels = (torch.tensor(values, dtype=dtype) for values in drawn())
    mixed, soft = mix(images, labels, mixup, cutmix, keyed(Stream.MIX, 0, 5, 1), mean)
    return mixed.double().numpy(), soft.double().numpy()


def official(mixup: float, cutmix: float, mean: bool) -> tuple[Array, Array]:
    """`mixing`: one of the two on the whole batch, or each on its half of it."""
    image, label = drawn()
    rng = keyed(Stream.MIX, 0, 5, 1)
    if not cutmix:
        return official_mixup(image, label, mixup, rng)
    if not mixup:
        return official_cutmix(image, label, official_masks(B, cutmix, rng), mean)
    half = B // 2
    first = official_mixup(image[:half], label[:half], mixup, rng)
    masks = official_masks(B - half, cutmix, rng)
    second = official_cutmix(image[half:], label[half:], masks, mean)
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


# alphas of the released stages: M 0.067, 0.133, 0.2; L 0.167, 0.333, 0.5
@pytest.mark.parametrize("mean", [True, False], ids=["mean", "own"])
@pytest.mark.parametrize(
    ("mixup", "cutmix"), [(0.2, 0), (0, 0.2), (0.067, 0.067), (0.2, 0.2), (0.5, 0.5), (0.4, 1.0)]
)
def test_images_and_labels_are_the_official_ones(mixup: float, cutmix: float, mean: bool) -> None:
    expected = official(mixup, cutmix, mean)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 2e-6)):
        for mine, theirs in zip(ours(mixup, cutmix, mean, dtype), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance)


def test_the_two_ways_to_weigh_labels_differ_and_have_the_same_mean() -> None:
    """The official shortcut is right on average only: single labels are off by up to a half."""
    images, labels = torch.zeros(400, 1, PX, PX), torch.eye(2).repeat_interleave(200, 0)
    own, mean = (
        mix(images, labels, 0, 1.0, keyed(Stream.MIX, 0, 5, 1), way)[1] for way in (False, True)
    )
    kept = own[:200, 0], mean[:200, 0]  # mirrors have the other label
    assert (kept[0] - kept[1]).abs().max() > 0.4
    assert kept[1].unique().numel() == 1
    everyone = torch.cat([own[:200, 0], own[200:, 1]])
    torch.testing.assert_close(everyone.mean(), kept[1][0])


def test_lambda_of_mixup_favours_the_image_itself() -> None:
    """Beta(0.2, 0.2) folded at a half: its mean is 0.5 + 0.5 * E|2 lambda - 1|."""
    rng = np.random.default_rng(0)
    folded = rng.beta(0.2, 0.2, 400_000)
    expected = np.maximum(folded, 1 - folded).mean()
    images = torch.zeros(4_000, 1, 1, 1, dtype=torch.float64)
    images[:2_000] = 1.0  # mirrors are zeros, so that a mixed image is its own weight
    mixed, _ = mix(images, torch.ones(4_000, 1), 0.2, 0, rng)
    weights = mixed[:2_000].flatten().numpy()
    assert weights.min() >= 0.5
    assert weights.mean() == pytest.approx(expected, abs=0.012)
