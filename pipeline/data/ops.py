"""Operations of augmentation on uint8 images: their names, and applying them in place.

An `Op` is all numbers, every random choice already made, so that a worker, the extension and a
device do the same with it. Where the extension is built it does the work, several times faster;
`ops_pillow` is the reference and gives the same pixels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.data import ops_pillow
from pipeline.data.extension import load_extension

OFFICIAL = (
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
"""The official RandAugment draws uniformly from these, by place: never reorder them."""
OPS = (
    *OFFICIAL,
    # The same with what lies outside black, as torchvision has it; Bilinear mixes four pixels.
    "RotateBlack",
    "ShearXBlack",
    "ShearYBlack",
    "TranslateXBlack",
    "TranslateYBlack",
    "RotateBilinear",
    "ShearXBilinear",
    "ShearYBilinear",
    # A box of one grey, or of noise.
    "GreyBox",
    "NoiseBox",
)
CODES = {name: code for code, name in enumerate(OPS)}


class Op(NamedTuple):
    """One operation with its argument.

    code: place of its name in `OPS`.
    value: degrees counter-clockwise (Rotate*), source px per px (Shear*), px that the source is
        further right or down (Translate*), bits kept (Posterize), the first level that is inverted
        (Solarize), grey levels (SolarizeAdd), half the side in px (Cutout), the seed below 2^32
        (NoiseBox), a factor with 1 for no change (Color, Contrast, Brightness, Sharpness).
    x, y: the centre of Cutout in px; the ends of a box, start + 65,536 end; 0 for all others.
    """

    code: int
    value: float = 0.0
    x: int = 0
    y: int = 0


def box_op(name: str, box: tuple[int, int, int, int], value: float = 0.0) -> Op:
    """Return GreyBox or NoiseBox on a box (left, top, right, bottom) in px of the image."""
    left, top, right, bottom = box
    return Op(CODES[name], value, left + ops_pillow.SPAN * right, top + ops_pillow.SPAN * bottom)


_native = load_extension()
_native_apply: Callable[[np.ndarray, Sequence[Op]], None] | None = _native and _native.apply


def apply_ops(image: np.ndarray, ops: Sequence[Op]) -> None:
    """Apply `ops` in their order to a (height, width, 3) uint8 image, in place.

    Raises:
        ValueError: an image that is not writable, C-contiguous uint8, or an Op that does not exist.
    """
    if not ops:
        return
    if _native_apply is not None:
        _native_apply(image, ops)
    else:
        ops_pillow.apply_all(image, [_named(op) for op in ops])


def _named(op: Op) -> tuple[str, float, int, int]:
    if not 0 <= op.code < len(OPS):
        raise ValueError(f"ops: code {op.code} is no operation, they are 0-{len(OPS) - 1}")
    return OPS[op.code], op.value, op.x, op.y
