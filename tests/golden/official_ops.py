"""The operations of the official RandAugment once more, in numpy: what ours are compared with.

Source: the definitions in autoaugment.py of google/automl, efficientnetv2 (commit 2fb46e72), and
those of the TensorFlow functions that it calls: tf.cast truncates, rgb_to_grayscale goes by way of
floats in 0 to 1, tensorflow_addons makes matrices that map an output place to its source. Numbers
have the types that they have there, since float32 decides what a truncation gives. Nothing of the
product is used. `level_to_argument` has no random sign.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Matrix = tuple[float, float, float, float, float, float]

MAX_LEVEL = 10.0
REPLACE = 128
ENHANCE = ("Color", "Contrast", "Brightness", "Sharpness")
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def level_to_argument(
    name: str, level: float, cutout_const: float = 40, translate_const: float = 100
) -> float:
    """Return the argument of an operation; AutoAugment has the constants 100 and 250."""
    part = level / MAX_LEVEL
    arguments = {
        "Rotate": part * 30.0,
        "Posterize": int(part * 4),
        "Solarize": int(part * 256),
        "SolarizeAdd": int(part * 110),
        "Cutout": int(part * cutout_const),
        **dict.fromkeys(("ShearX", "ShearY"), part * 0.3),
        **dict.fromkeys(("TranslateX", "TranslateY"), part * translate_const),
        **dict.fromkeys(ENHANCE, part * 1.8 + 0.1),
    }
    return arguments.get(name, 0)


def apply(name: str, image: Pixels, argument: float, centre: tuple[int, int] = (0, 0)) -> Pixels:
    """Apply an operation; centre is (x, y) of Cutout."""
    if name == "Cutout":
        return cutout(image, int(argument), centre)
    if name in SIGNED:
        return transform(image, matrix(name, argument, image))
    if name in ("AutoContrast", "Equalize", "Invert"):
        return {"AutoContrast": autocontrast, "Equalize": equalize, "Invert": invert}[name](image)
    return WITH_ARGUMENT[name](image, argument)


def to_uint8(values: NDArray[np.floating[Any]]) -> Pixels:
    """Clip and truncate, as clip_by_value and tf.cast do."""
    return np.clip(values, 0, 255).astype(np.uint8)


def blend(image1: Pixels, image2: Pixels, factor: float) -> Pixels:
    """Return image1 + factor (image2 - image1)."""
    if factor in (0.0, 1.0):
        return (image1, image2)[int(factor)]
    first, second = image1.astype(np.float32), image2.astype(np.float32)
    return to_uint8(first + np.float32(factor) * (second - first))


def grey(image: Pixels) -> Pixels:
    """Return tf.image.rgb_to_grayscale: (h, w, 1); it truncates 255.5 times a float below 1."""
    scaled = image.astype(np.float32) * np.float32(1 / 255)
    red, green, blue = np.split(scaled, 3, axis=2)
    weights = np.array([0.2989, 0.5870, 0.1140], np.float32)
    total = red * weights[0] + green * weights[1] + blue * weights[2]
    return (total * np.float32(255.5)).astype(np.uint8)


def color(image: Pixels, factor: float) -> Pixels:
    return blend(np.repeat(grey(image), 3, axis=2), image, factor)


def published_contrast_grey(image: Pixels) -> int:
    """Return what all pixels are blended with: their number by 256, 255 at most."""
    histogram = np.bincount(grey(image).ravel(), minlength=256)
    return int(min(255.0, float(histogram.sum()) / 256.0))


def meant_contrast_grey(image: Pixels) -> int:
    """Return the mean of the grey image, as PIL's Contrast, which the function names, takes it."""
    histogram = np.bincount(grey(image).ravel(), minlength=256)
    return int(float(histogram @ np.arange(256)) / float(histogram.sum()))


def contrast(
    image: Pixels, factor: float, degenerate: Callable[[Pixels], int] = published_contrast_grey
) -> Pixels:
    return blend(np.full_like(image, degenerate(image)), image, factor)


def brightness(image: Pixels, factor: float) -> Pixels:
    return blend(np.zeros_like(image), image, factor)


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Blend with the smooth image, whose 3 x 3 sum by 13 is truncated; the border stays.

    The sum is exact: TensorFlow's, in float32, may end just below a whole number and lose 1.
    """
    wide, (height, width) = image.astype(np.int64), image.shape[:2]
    total = 4 * wide[1:-1, 1:-1]
    for y in range(3):
        for x in range(3):
            total = total + wide[y : y + height - 2, x : x + width - 2]
    smooth = image.copy()
    smooth[1:-1, 1:-1] = total // 13
    return blend(smooth, image, factor)


def posterize(image: Pixels, bits: float) -> Pixels:
    """Shift to and fro by 8 - bits, as a uint8 (so -1 is 255); TensorFlow shifts by 7 at most."""
    shift = np.uint8(min((8 - int(bits)) % 256, 7))
    return image >> shift << shift


def solarize(image: Pixels, threshold: float) -> Pixels:
    """Invert from the threshold on, which TensorFlow takes as a uint8 (so 256 is 0)."""
    return np.where(image < int(threshold) % 256, image, 255 - image)


def solarize_add(image: Pixels, addition: float, threshold: int = 128) -> Pixels:
    added = np.clip(image.astype(np.int64) + int(addition), 0, 255).astype(np.uint8)
    return np.where(image < threshold, added, image)


def invert(image: Pixels) -> Pixels:
    return 255 - image


def autocontrast(image: Pixels) -> Pixels:
    """Scale each channel to 0 to 255."""
    out = image.copy()
    for c in range(3):
        low, high = np.float32(image[..., c].min()), np.float32(image[..., c].max())
        if high > low:
            scale = np.float32(255) / (high - low)
            out[..., c] = to_uint8(image[..., c].astype(np.float32) * scale + -low * scale)
    return out


def equalize(image: Pixels) -> Pixels:
    """Look each channel up in its cumulative histogram."""
    out = image.copy()
    for c in range(3):
        histogram = np.bincount(image[..., c].ravel(), minlength=256)
        step = (histogram.sum() - histogram[histogram != 0][-1]) // 255
        if step:
            table = (np.cumsum(histogram) + step // 2) // step
            table = np.clip(np.concatenate([[0], table[:-1]]), 0, 255)
            out[..., c] = table[image[..., c]]
    return out


def cutout(image: Pixels, pad_size: int, centre: tuple[int, int]) -> Pixels:
    """Fill what a frame around the square leaves; part of it may lie outside."""
    (height, width), (x, y) = image.shape[:2], centre
    upper, lower = max(0, y - pad_size), max(0, height - y - pad_size)
    left, right = max(0, x - pad_size), max(0, width - x - pad_size)
    kept = np.ones((height, width), bool)
    kept[upper : height - lower, left : width - right] = False
    return np.where(kept[..., None], image, np.uint8(REPLACE))


def matrix(name: str, argument: float, image: Pixels) -> Matrix:
    """Return the first six numbers of the projective transform (the last two are 0)."""
    if name == "Rotate":
        return rotation(math.radians(argument), *image.shape[:2])
    return {
        "ShearX": (1.0, argument, 0.0, 0.0, 1.0, 0.0),
        "ShearY": (1.0, 0.0, 0.0, argument, 1.0, 0.0),
        "TranslateX": (1.0, 0.0, argument, 0.0, 1.0, 0.0),
        "TranslateY": (1.0, 0.0, 0.0, 0.0, 1.0, argument),
    }[name]


def rotation(radians: float, height: int, width: int) -> Matrix:
    """Return angles_to_projective_transforms of tensorflow_addons, in float32 as there."""
    angle, right, bottom = np.float32(radians), np.float32(width - 1), np.float32(height - 1)
    cosine, sine = np.cos(angle), np.sin(angle)
    x = (right - (cosine * right - sine * bottom)) / np.float32(2)
    y = (bottom - (sine * right + cosine * bottom)) / np.float32(2)
    return (float(cosine), -float(sine), float(x), float(sine), float(cosine), float(y))


def transform(image: Pixels, numbers: Matrix, half_pixel: float = 0.0) -> Pixels:
    """Take the nearest pixel at the matrix * (x, y, 1), halves away from 0; else `REPLACE`.

    Source: ImageProjectiveTransformV3, nearest, constant. `half_pixel` of 0.5 applies the matrix
    to the middles of pixels instead of their indices, which is not official.
    """
    height, width = image.shape[:2]
    a, b, c, d, e, f = np.array(numbers, np.float32)
    half = np.float32(half_pixel)
    y, x = np.mgrid[:height, :width].astype(np.float32) + half
    from_x, from_y = half_away(a * x + b * y + c - half), half_away(d * x + e * y + f - half)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    out = np.full_like(image, REPLACE)
    out[inside] = image[from_y[inside], from_x[inside]]
    return out


def half_away(numbers: NDArray[np.float32]) -> NDArray[np.int64]:
    """Round as C's round does."""
    wide = numbers.astype(np.float64)
    return np.trunc(wide + np.copysign(0.5, wide)).astype(np.int64)


WITH_ARGUMENT: dict[str, Callable[[Pixels, float], Pixels]] = {
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
}
