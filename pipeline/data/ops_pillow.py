"""The operations of `ops` with Pillow: the reference for all others, and what runs without them.

The arithmetic is that of Pillow's ImageOps, ImageEnhance and nearest affine transforms, as in the
official code. One of its quirks is not kept: Contrast blends with the image's mean grey, as it was
meant (there: pixels / 256, white from 256 px on).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

SOLARIZE_ADD_BELOW = 128
GREY = (128, 128, 128)
BLACK = (0, 0, 0)

SPAN = 1 << 16
"""A box is its start + SPAN times its end, along each axis."""
_WEYL = 0x9E3779B9  # 2^32 / golden ratio: neighbours get numbers far apart
_ENHANCERS = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}
_WARPS = {
    "": (Image.Resampling.NEAREST, GREY),
    "Black": (Image.Resampling.NEAREST, BLACK),
    "Bilinear": (Image.Resampling.BILINEAR, BLACK),
}


def apply_all(image: np.ndarray, ops: Sequence[tuple[str, float, int, int]]) -> None:
    """Apply (name, value, x, y) in their order to a (height, width, 3) uint8 image, in place."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image: expected (h, w, 3) of uint8, got {image.shape} {image.dtype}")
    if not (image.flags.c_contiguous and image.flags.writeable):
        raise ValueError("image: expected a writable array without gaps")
    picture = Image.fromarray(image)
    for name, value, x, y in ops:
        picture = apply(picture, name, value, x, y)
    image[...] = np.asarray(picture)


def apply(image: Image.Image, name: str, value: float, x: int = 0, y: int = 0) -> Image.Image:
    """Return an RGB image with one operation applied; the numbers are those of `ops.Op`."""
    if name in _ENHANCERS:
        return _ENHANCERS[name](image).enhance(value)
    if name.startswith(("Rotate", "Shear", "Translate")):
        return _warp(image, name, value)
    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Posterize":
            return ImageOps.posterize(image, int(value))
        case "Solarize":
            return image.point([v if v < value else 255 - v for v in range(256)] * 3)
        case "SolarizeAdd":
            table = [v if v >= SOLARIZE_ADD_BELOW else min(255, v + int(value)) for v in range(256)]
            return image.point(table * 3)
        case "Cutout":
            half = int(value)
            return _fill(image, (x - half, y - half, x + half, y + half), None)
        case "GreyBox":
            return _fill(image, _box(x, y), None)
        case "NoiseBox":
            return _fill(image, _box(x, y), int(value))
    raise AssertionError(f"no operation {name}")


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """Return (height, width, 3) uint8, uniform, a function of the seed and each pixel's place.

    A counter through a 32-bit mixer (C. Wellons, "Prospecting for hash functions", lowbias32), so
    that every part of it can be computed alone, and by any processor.
    """
    bits = np.arange(height * width, dtype=np.uint32) * np.uint32(_WEYL) + np.uint32(seed)
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    bits ^= bits >> 16
    channels = np.stack([bits, bits >> 8, bits >> 16], -1).astype(np.uint8)
    return channels.reshape(height, width, 3)


def _warp(image: Image.Image, name: str, value: float) -> Image.Image:
    """Sample at a matrix * (x, y, 1); what lies outside becomes the way's colour."""
    kind, way = _split(name)
    filter, outside = _WARPS[way]
    if kind == "Rotate":
        return image.rotate(value, filter, fillcolor=outside)
    matrix = {
        "ShearX": (1, value, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, value, 1, 0),
        "TranslateX": (1, 0, value, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, value),
    }[kind]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, filter, fillcolor=outside)


def _split(name: str) -> tuple[str, str]:
    """Return "ShearX", "Black" for "ShearXBlack"."""
    for way in ("Black", "Bilinear"):
        if name.endswith(way):
            return name.removesuffix(way), way
    return name, ""


def _box(x: int, y: int) -> tuple[int, int, int, int]:
    return x % SPAN, y % SPAN, x // SPAN, y // SPAN


def _fill(image: Image.Image, box: tuple[int, int, int, int], seed: int | None) -> Image.Image:
    """Fill a box, as far as it lies in the image, with grey or the noise of a seed."""
    left, top, right, bottom = (
        max(0, box[0]),
        max(0, box[1]),
        min(image.width, box[2]),
        min(image.height, box[3]),
    )
    pixels = np.array(image)
    if right > left and bottom > top:
        inside = np.s_[top:bottom, left:right]
        pixels[inside] = GREY if seed is None else noise(image.height, image.width, seed)[inside]
    return Image.fromarray(pixels)
