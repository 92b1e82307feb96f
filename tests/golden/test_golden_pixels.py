"""Pixels as the official code makes them: which part of an image, how it is resized, its range.

Sources: preprocessing.py and preprocess_legacy.py of google/automl, efficientnetv2, and
TensorFlow's documentation of `tf.image.resize` (half-pixel centres, no antialiasing).
"""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.augment import draw
from pipeline.data.decode import decode_eval, decode_train
from pipeline.data.preprocess import PreprocessSpec
from pipeline.engine.inputs import Inputs
from pipeline.recipe import load_recipe

Box = tuple[int, int, int, int]


def tensorflows_resize(pixels: NDArray[np.uint8], px: int) -> NDArray[np.float64]:
    """Bilinear between the two pixels beside each point, one axis after the other."""
    values = pixels.astype(np.float64)
    for axis in (0, 1):
        size = values.shape[axis]
        points = (np.arange(px) + 0.5) * size / px - 0.5
        below = np.floor(points).astype(int)
        part = (points - below).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        near, far = (np.take(values, (below + k).clip(0, size - 1), axis) for k in (0, 1))
        values = near + (far - near) * part
    return values


def official_eval_box(width: int, height: int, px: int, legacy: bool) -> Box:
    """The centre square of px / (px + 32) of the short side; all of it from 320 px on."""
    if px >= 320 and not legacy:
        return 0, 0, width, height
    side = int(np.float32(px / (px + 32)) * np.float32(min(width, height)))
    odd = 1 if legacy else 0
    left, top = (width - side + odd) // 2, (height - side + odd) // 2
    return left, top, left + side, top + side


SHAPES = [(500, 375), (375, 500), (333, 500), (500, 334), (224, 224), (1200, 83), (47, 640)]


@pytest.mark.parametrize("px", [224, 240, 260, 300, 380, 456, 528, 600])
def test_the_legacy_evaluation_takes_the_centre(px: int) -> None:
    spec = PreprocessSpec(eval_resize="center", antialias=False)
    for width, height in SHAPES:
        assert spec.box(width, height, px) == official_eval_box(width, height, px, legacy=True)


@pytest.mark.parametrize("px", [192, 224, 300, 319, 320, 384, 480, 512])
def test_the_evaluation_of_s_to_xl_squashes_from_320_px_on(px: int) -> None:
    spec = PreprocessSpec(eval_resize="auto", antialias=False)
    for width, height in SHAPES:
        assert spec.box(width, height, px) == official_eval_box(width, height, px, legacy=False)


@pytest.mark.parametrize("px", [128, 171, 224, 300, 384])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (96, 80)])
def test_images_are_resized_from_single_points_as_in_tensorflow(
    px: int, width: int, height: int
) -> None:
    """Training casts to uint8 there, which drops the fraction; so does this, in both."""
    pixels = np.random.default_rng(px).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    expected = tensorflows_resize(pixels, px)
    spec = PreprocessSpec(eval_resize="squash", antialias=False)
    ours = decode_eval(file.getvalue(), spec, px)
    assert np.abs(ours - expected).max() < 1.001
    same = ours == np.floor(expected + 1e-9)  # where points fall on pixels, either may win
    assert same.mean() > 0.98


@pytest.mark.parametrize("px", [171, 300])
def test_training_crops_are_cut_first_and_then_resized(repo: Path, px: int) -> None:
    augment = load_recipe(repo / "configs/v2_s_1k.yaml").augment.model_copy(update={"kind": "none"})
    pixels = np.random.default_rng(3).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    for seed in range(6):
        out = np.empty((px, px, 3), np.uint8)
        drawn = draw(500, 375, px, augment, 0.0, np.random.default_rng(seed))
        decode_train(file.getvalue(), px, augment, 0.0, np.random.default_rng(seed), out)
        left, top, right, bottom = drawn.box
        expected = tensorflows_resize(pixels[top:bottom, left:right], px)
        expected = expected[:, ::-1] if drawn.flip else expected
        assert (out == np.floor(expected + 1e-9)).mean() > 0.99


def test_pixels_of_s_to_xl_are_less_128_by_128(repo: Path) -> None:
    images = normalised(repo, "v2_s_1k")
    assert images.tolist() == [(value - 128.0) / 128.0 for value in range(256)]
    assert (images.min(), images.max()) == (-1, 127 / 128)


def test_pixels_of_finetuning_go_from_minus_one_to_one(repo: Path) -> None:
    """preprocess_for_finetune: (x / 255 - 0.5) / 0.5."""
    expected = (np.arange(256) / 255.0 - 0.5) / 0.5
    np.testing.assert_allclose(normalised(repo, "v2_m_21k_ft1k"), expected, rtol=0, atol=1e-7)


def test_legacy_pixels_have_imagenets_mean_and_deviation(repo: Path) -> None:
    expected = (np.arange(256) - 0.485 * 255) / (0.229 * 255)
    np.testing.assert_allclose(normalised(repo, "v1_b0_1k"), expected, rtol=0, atol=1e-6)


def normalised(repo: Path, name: str) -> NDArray[np.float32]:
    """Return what becomes of the red values 0 to 255."""
    preprocess = load_recipe(repo / "configs" / f"{name}.yaml").preprocess
    inputs = Inputs(preprocess, 10, 0.0, 0, torch.device("cpu"), channels_last=True)
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    return inputs.images(torch.from_numpy(ramp))[0, 0].flatten().numpy()
