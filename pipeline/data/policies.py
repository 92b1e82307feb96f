"""Policies of augmentation: draws of operations, with the arguments that their sources give them.

RandAugment and AutoAugment v0 follow autoaugment.py of google/automl, efficientnetv2; the second
RandAugment, jitter and erasing follow torchvision. Magnitudes are floats and may exceed a source's
largest. A published quirk is kept: the official posterize gets weaker with the magnitude, down to
1 bit and up to 8. Two are not: contrast keeps its intended mean grey, and solarize does nothing
from 10 on, where TensorFlow's threshold of 256 becomes 0 in a byte (docs/loader.md).
"""

import math

import numpy as np

from pipeline.data.ops import CODES, OFFICIAL, Op, box_op

MAX_LEVEL = 10.0
CUTOUT_PX, TRANSLATE_PX = 40, 100
"""RandAugment's half side and distance at level 10."""
AUTOAUGMENT_CUTOUT_PX, AUTOAUGMENT_TRANSLATE_PX = 100, 250
"""The same for AutoAugment v0."""

_SIGNED = frozenset({"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"})
_ENHANCE = frozenset({"Color", "Contrast", "Brightness", "Sharpness"})

V0 = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)
"""AutoAugment's sub-policies v0: operation, probability, level (policy_v0 there)."""

TORCHVISION_BINS = 31
TORCHVISION = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
_ERASE_AREA, _ERASE_RATIO, _ERASE_ATTEMPTS = (0.02, 0.33), (0.3, 3.3), 10


def randaugment(
    px: int,
    magnitude: float,
    num_layers: int,
    rng: np.random.Generator,
    reference_px: int | None = None,
) -> list[Op]:
    """Draw the official RandAugment of a (px, px) image; magnitude 0 is off, and draws nothing.

    Each layer is one of the 16 operations, always applied, all at the same magnitude.
    """
    ops = []
    for _ in range(num_layers if magnitude > 0 else 0):
        name = OFFICIAL[rng.integers(len(OFFICIAL))]
        value = argument(name, magnitude, px, reference_px)
        ops.append(_official(name, value, px, rng))
    return ops


def autoaugment_v0(px: int, rng: np.random.Generator, reference_px: int | None = None) -> list[Op]:
    """Draw the official AutoAugment v0: a sub-policy, and whether each of its two is applied."""
    ops = []
    for name, probability, level in V0[rng.integers(len(V0))]:
        applied = rng.random() < probability
        value = argument(
            name, level, px, reference_px, AUTOAUGMENT_TRANSLATE_PX, AUTOAUGMENT_CUTOUT_PX
        )
        op = _official(name, value, px, rng)
        if applied:
            ops.append(op)
    return ops


def argument(
    name: str,
    magnitude: float,
    px: int,
    reference_px: int | None = None,
    translate_px: float = TRANSLATE_PX,
    cutout_px: float = CUTOUT_PX,
) -> float:
    """Return the argument of an official operation at a magnitude, without its random sign.

    Degrees for Rotate, px for Translate and Cutout (scaled by px / reference_px where given), bits
    kept for Posterize, grey levels for Solarize and SolarizeAdd, a factor for the rest; 0 for
    operations without one.
    """
    level = magnitude / MAX_LEVEL
    scale = px / reference_px if reference_px else 1.0
    if name in _ENHANCE:
        return level * 1.8 + 0.1
    match name:
        case "Rotate":
            return level * 30
        case "ShearX" | "ShearY":
            return level * 0.3
        case "TranslateX" | "TranslateY":
            return level * translate_px * scale
        case "Cutout":
            return int(level * cutout_px * scale)
        case "Posterize":
            return min(8, max(1, int(level * 4)))
        case "Solarize":
            return min(256, int(level * 256))
        case "SolarizeAdd":
            return int(level * 110)
    return 0


def _official(name: str, value: float, px: int, rng: np.random.Generator) -> Op:
    """Draw a sign and a centre, for every operation alike."""
    sign = 1 if rng.random() < 0.5 else -1
    x, y = int(rng.integers(px)), int(rng.integers(px))
    if name == "Cutout":
        return Op(CODES[name], value, x, y)
    return Op(CODES[name], sign * value if name in _SIGNED else value)


def randaugment_torchvision(
    px: int,
    magnitude: float,
    num_layers: int,
    rng: np.random.Generator,
    bilinear: bool = False,
) -> list[Op]:
    """Draw torchvision's RandAugment (14 operations, 31 bins, black outside); magnitude 0 is off.

    `bilinear` is its interpolation, which its own training of EfficientNetV2 uses.
    """
    ops = []
    for _ in range(num_layers if magnitude > 0 else 0):
        name = TORCHVISION[rng.integers(len(TORCHVISION))]
        sign = -1 if name in _SIGNED | _ENHANCE and rng.random() < 0.5 else 1
        if name != "Identity":
            ops.append(torchvision_op(name, sign * magnitude, px, bilinear))
    return ops


def torchvision_op(name: str, magnitude: float, px: int, bilinear: bool = False) -> Op:
    """Return torchvision's operation at a signed magnitude in bins, 0 to 30 in the original."""
    mixed = "Bilinear" if bilinear else "Black"
    if name in _ENHANCE:
        return Op(CODES[name], max(0.0, 1 + _in_bins(magnitude, 0.9)))
    match name:
        case "Rotate":
            return Op(CODES[name + mixed], _in_bins(magnitude, 30))
        case "ShearX" | "ShearY":
            # By way of degrees there, which costs the last digit.
            angle = math.radians(math.degrees(math.atan(_in_bins(magnitude, 0.3))))
            return Op(CODES[name + mixed], math.tan(angle))
        case "TranslateX" | "TranslateY":
            return Op(CODES[name + "Black"], -int(_in_bins(magnitude, 150 / 331 * px)))
        case "Posterize":
            bits = 8 - round(magnitude / ((TORCHVISION_BINS - 1) / 4))
            return Op(CODES[name], min(8, max(1, bits)))
        case "Solarize":
            return Op(CODES[name], max(0.0, 255 - _in_bins(magnitude, 255)))
    return Op(CODES[name])


def _in_bins(magnitude: float, largest: float) -> float:
    """Return torch.linspace(0, largest, 31) at a magnitude, with its rounding to float32."""
    last = TORCHVISION_BINS - 1
    step = float(np.float32(largest) / np.float32(last))
    number = abs(magnitude)
    upper = number > last / 2
    at = float(np.float32(largest)) - step * (last - number) if upper else step * number
    return math.copysign(float(np.float32(at)), magnitude)


def color_jitter(strength: float, rng: np.random.Generator) -> list[Op]:
    """Draw torchvision's ColorJitter: brightness, contrast and saturation in random order.

    Factors are uniform in 1 - strength (at least 0) to 1 + strength; strength 0 is off.
    """
    if strength <= 0:
        return []
    names = ("Brightness", "Contrast", "Color")
    low, high = max(0.0, 1 - strength), 1 + strength
    return [Op(CODES[names[i]], rng.uniform(low, high)) for i in rng.permutation(len(names))]


def cutout_noise(px: int, fraction: float, rng: np.random.Generator) -> list[Op]:
    """Draw the official cutout of finetuning: half the side is int(fraction * px), noise inside.

    The centre is anywhere in the image, so that part of the square may lie outside; 0 is off.
    """
    half = int(fraction * px)
    if half <= 0:
        return []
    x, y = int(rng.integers(px)), int(rng.integers(px))
    box = max(0, x - half), max(0, y - half), min(px, x + half), min(px, y + half)
    return [box_op("NoiseBox", box, int(rng.integers(1 << 32)))]


def erasing(px: int, probability: float, noise: bool, rng: np.random.Generator) -> list[Op]:
    """Draw torchvision's RandomErasing with its default areas and ratios; probability 0 is off.

    Where ten draws do not fit, nothing is erased. The box becomes noise, or the official mean grey.
    """
    if probability <= 0 or rng.random() >= probability:
        return []
    ratios = math.log(_ERASE_RATIO[0]), math.log(_ERASE_RATIO[1])
    for _ in range(_ERASE_ATTEMPTS):
        area, ratio = px * px * rng.uniform(*_ERASE_AREA), math.exp(rng.uniform(*ratios))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < px and width < px:
            top = int(rng.integers(px - height + 1))
            left = int(rng.integers(px - width + 1))
            box = left, top, left + width, top + height
            if noise:
                return [box_op("NoiseBox", box, int(rng.integers(1 << 32)))]
            return [box_op("GreyBox", box)]
    return []
