"""RandAugment with the 16 operations and magnitudes of the official code.

Source: autoaugment.py of google/automl, efficientnetv2. Each layer applies one operation, drawn
uniformly, always, all at the same magnitude M; M is a float and may exceed 10. Two published quirks
are kept: posterize gets weaker with M, solarize does nothing from M = 10 on. Two are not: posterize
keeps at least 1 and at most 8 bits (0 would be a black image, more than 8 an error), and contrast
blends with the image's mean grey, as it was meant (there: pixels / 256, white from 256 px on).
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_LEVEL = 10.0
CUTOUT_PX = 40  # half side at M = 10
TRANSLATE_PX = 100  # at M = 10
SOLARIZE_ADD_BELOW = 128
FILL = (128, 128, 128)

OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)
_SIGNED = frozenset({"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"})
_ENHANCERS = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}


def randaugment(
    image: Image.Image,
    magnitude: float,
    num_layers: int,
    rng: np.random.Generator,
    reference_px: int | None = None,
) -> Image.Image:
    """Return an RGB image with `num_layers` random operations applied; magnitude 0 is off."""
    if magnitude <= 0:
        return image
    for _ in range(num_layers):
        op = OPS[rng.integers(len(OPS))]
        sign = 1 if rng.random() < 0.5 else -1
        centre = (int(rng.integers(image.width)), int(rng.integers(image.height)))
        value = argument(op, magnitude, image.width, reference_px)
        image = apply(image, op, sign * value if op in _SIGNED else value, centre)
    return image


def argument(op: str, magnitude: float, px: int, reference_px: int | None = None) -> float:
    """Return the argument of `op` at a magnitude, without its random sign.

    Degrees for Rotate, px for Translate and Cutout (scaled by px / reference_px where given), bits
    kept for Posterize, grey levels for Solarize and SolarizeAdd, a factor for the rest; 0 for
    operations without one.
    """
    level = magnitude / MAX_LEVEL
    scale = px / reference_px if reference_px else 1.0
    arguments = {
        "Rotate": level * 30,
        "ShearX": level * 0.3,
        "ShearY": level * 0.3,
        "TranslateX": level * TRANSLATE_PX * scale,
        "TranslateY": level * TRANSLATE_PX * scale,
        "Cutout": int(level * CUTOUT_PX * scale),
        "Posterize": min(8, max(1, int(level * 4))),
        "Solarize": min(256, int(level * 256)),
        "SolarizeAdd": int(level * 110),
    }
    return level * 1.8 + 0.1 if op in _ENHANCERS else arguments.get(op, 0)


def apply(image: Image.Image, op: str, value: float, centre: tuple[int, int]) -> Image.Image:
    """Apply one operation to an RGB image; `centre` (x, y) is used by Cutout alone."""
    if op in _ENHANCERS:
        return _ENHANCERS[op](image).enhance(value)
    match op:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Posterize":
            return ImageOps.posterize(image, int(value))
        case "Solarize":
            return ImageOps.solarize(image, int(value))
        case "SolarizeAdd":
            table = [v if v >= SOLARIZE_ADD_BELOW else min(255, v + int(value)) for v in range(256)]
            return image.point(table * 3)
        case "Rotate":
            return image.rotate(value, Image.Resampling.NEAREST, fillcolor=FILL)
        case "ShearX":
            return _affine(image, (1, value, 0, 0, 1, 0))
        case "ShearY":
            return _affine(image, (1, 0, 0, value, 1, 0))
        case "TranslateX":
            return _affine(image, (1, 0, value, 0, 1, 0))
        case "TranslateY":
            return _affine(image, (1, 0, 0, 0, 1, value))
        case "Cutout":
            return _cutout(image, int(value), centre)
    raise AssertionError(f"no operation {op}")


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Sample the nearest pixel at matrix * (x, y, 1); what lies outside becomes grey."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FILL
    )


def _cutout(image: Image.Image, half: int, centre: tuple[int, int]) -> Image.Image:
    x, y = centre
    left, right = max(0, x - half), min(image.width, x + half)
    top, bottom = max(0, y - half), min(image.height, y + half)
    image = image.copy()
    if right > left and bottom > top:
        image.paste(FILL, (left, top, right, bottom))
    return image
