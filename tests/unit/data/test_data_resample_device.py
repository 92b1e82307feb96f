"""The batched resize gives Pillow's pixels for any mixture of crops."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import resample_device
from pipeline.data.resample_device import points, resize_crops, taps

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CPU = torch.device("cpu")


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_crop(pixels: np.ndarray, device: torch.device = CPU) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).to(device)


SIZES = [(1, 1), (1, 50), (50, 1), (2, 3), (40, 40), (41, 90), (90, 41), (300, 20), (20, 300)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("px", [1, 40, 57])
def test_crops_of_any_size_come_out_as_from_pillow(interpolation, px):
    """Noise is the hardest input: a wrong tap shows at once. 1 is a tie rounded the other way."""
    pictures = [picture(seed, *size) for seed, size in enumerate(SIZES)]
    resized = resize_crops([as_crop(one) for one in pictures], px, interpolation).numpy()
    for one, result in zip(pictures, resized, strict=True):
        expected = np.asarray(Image.fromarray(one).resize((px, px), FILTERS[interpolation]))
        difference = np.abs(result.astype(int) - expected)
        assert difference.max() <= 1, one.shape
        if px > 1:
            assert difference.mean() < 0.1, one.shape


def test_a_crop_does_not_depend_on_its_neighbours():
    """Large ones only add columns of zero weight."""
    alone = resize_crops([as_crop(picture(0, 30, 40))], 24, "bicubic")
    beside = resize_crops(
        [as_crop(picture(0, 30, 40)), as_crop(picture(1, 200, 90))], 24, "bicubic"
    )
    assert torch.equal(alone[0], beside[0])


def test_one_large_crop_does_not_make_all_others_large(monkeypatch):
    """Padded to the largest, a few thousand pixels would become millions."""
    padded: list[int] = []
    real = resample_device._resize

    def note(crops: list[torch.Tensor], *others):
        sides = [max(crop.shape[side] for crop in crops) for side in (1, 2)]
        padded.append(len(crops) * sides[0] * sides[1])
        return real(crops, *others)

    monkeypatch.setattr(resample_device, "_resize", note)
    monkeypatch.setattr(resample_device, "GROUP_PIXELS", 5000)
    pictures = [picture(seed, *size) for seed, size in enumerate(SIZES * 2)] + [picture(9, 90, 95)]
    resized = resize_crops([as_crop(one) for one in pictures], 20, "bilinear").numpy()
    largest = max(one.shape[0] * one.shape[1] for one in pictures)
    assert len(padded) > 3 and max(padded) <= max(largest, 5000)
    for one, result in zip(pictures, resized, strict=True):
        expected = np.asarray(Image.fromarray(one).resize((20, 20), Image.Resampling.BILINEAR))
        assert np.abs(result.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("weights", [taps, points])
def test_weights_of_every_pixel_sum_to_one_inside_its_own_size(interpolation, weights):
    matrix = weights([1, 7, 40, 100], 16, interpolation, CPU)
    assert matrix.shape == (4, 16, 100)
    torch.testing.assert_close(matrix.sum(2), torch.ones(4, 16))
    for own, size in zip(matrix, (1, 7, 40, 100), strict=True):
        assert not own[:, size:].any()


def test_without_antialiasing_only_the_nearest_points_are_sampled():
    """As TensorFlow's resize: where 100 px become 10, twenty of every hundred pixels count."""
    weights = points([100], 10, "bilinear", CPU)[0]
    assert ((weights > 0).sum(1) == 2).all()
    torch.testing.assert_close(weights @ torch.arange(100.0), torch.arange(10) * 10 + 4.5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("px", [1, 40, 57])
def test_without_antialiasing_pixels_are_those_of_pillows_transform(interpolation, px):
    pictures = [picture(seed, *size) for seed, size in enumerate(SIZES)]
    crops = [as_crop(one) for one in pictures]
    resized = resize_crops(crops, px, interpolation, antialias=False).numpy()
    for one, result in zip(pictures, resized, strict=True):
        extent = (0, 0, one.shape[1], one.shape[0])
        expected = np.asarray(
            Image.fromarray(one).transform(
                (px, px), Image.Transform.EXTENT, extent, FILTERS[interpolation]
            )
        )
        difference = np.abs(result.astype(int) - expected)
        assert difference.max() <= 1 and difference.mean() < 0.01, one.shape


@pytest.mark.gpu
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_gpu_gives_the_same_pixels(interpolation):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    pictures = [picture(seed, *size) for seed, size in enumerate(SIZES)]
    there = resize_crops([as_crop(p, torch.device("cuda")) for p in pictures], 57, interpolation)
    here = resize_crops([as_crop(p) for p in pictures], 57, interpolation)
    difference = (there.cpu().int() - here.int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.01
