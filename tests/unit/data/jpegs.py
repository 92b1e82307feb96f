"""Small JPEGs for tests of decoding, and crops of them by the extension and by Pillow."""

import io
from typing import Any

import numpy as np
from PIL import Image
from simplejpeg import encode_jpeg

from pipeline.data.decode_safe import View, show
from pipeline.data.preprocess import Box, Interpolation

try:
    from pipeline.data import _native as native  # pyright: ignore
except ImportError:
    native = None

SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")
FILTERS: tuple[tuple[Interpolation, bool], ...] = (
    ("bilinear", True),
    ("bicubic", True),
    ("bilinear", False),
)
"""Interpolation and antialiasing, in the order of the extension's numbers."""


def picture(width: int, height: int) -> np.ndarray:
    """Noise over a ramp: every pixel tells where it comes from."""
    rng = np.random.default_rng(width * 1000 + height)
    ramp = np.linspace(0, 195, width)[None, :, None] + np.linspace(0, 20, height)[:, None, None]
    return (ramp + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)


def jpeg(width: int = 100, height: int = 75, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(width, height)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def subsampled(width: int, height: int, kind: str) -> bytes:
    pixels = picture(width, height)
    if kind == "Gray":
        grey = np.ascontiguousarray(pixels[:, :, :1])
        return encode_jpeg(grey, 85, colorspace="Gray", colorsubsampling="Gray")
    return encode_jpeg(pixels, 85, colorsubsampling=kind)


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    left, top = int(rng.integers(width)), int(rng.integers(height))
    right, bottom = int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1
    return left, top, right, bottom


def crop(
    data: bytes, box: Box, size: tuple[int, int], filter: int = 0, flip: bool = False
) -> np.ndarray | None:
    assert native is not None
    out = np.full((size[1], size[0], 3), 123, np.uint8)
    return out if native.crop_resize(data, box, out, filter, flip) else None


def expected(data: bytes, view: View, size: tuple[int, int]) -> np.ndarray:
    out = np.empty((size[1], size[0], 3), np.uint8)
    show(Image.open(io.BytesIO(data)).convert("RGB"), view, out)
    return out
