"""The operations of `ops` for a whole micro-batch on its device, with the same bytes.

Every sample has its own operations. Layer by layer the samples are sorted by the way their
operation works (a table of values, a warp, a blend, a box), and each way runs once for all of its
samples: some hundred small kernels a layer, whatever the batch. Operations and their numbers stay
on the host, so nothing here waits for the device.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.data import pixels_device as pixels
from pipeline.data.batches import pack_ops
from pipeline.data.ops import CODES, OPS, Op
from pipeline.data.ops_pillow import SOLARIZE_ADD_BELOW
from pipeline.data.transfer import upload

GREY = 128
_SPAN = 1 << 16
_VALUES = np.arange(256)

Matrix = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: the source of (x, y) is at a x + b y + c, d x + e y + f."""


def apply_ops_batch(images: Tensor, ops: np.ndarray | Sequence[Sequence[Op]]) -> Tensor:
    """Return `images` with each sample's operations applied in their order.

    Args:
        images: (B, px, px, 3) uint8 on any device; left as they are.
        ops: a sequence of `Op` for each sample, or the (B, L) array that `pack_ops` makes of them.
    """
    packed = ops if isinstance(ops, np.ndarray) else pack_ops(ops)
    assert len(packed) == len(images), f"ops of {len(packed)} samples for {len(images)} images"
    for layer in packed.T:
        images = _apply_layer(images, layer)
    return images


def _apply_layer(images: Tensor, ops: np.ndarray) -> Tensor:
    """Apply one operation to each image."""
    done = images.clone()
    for way, codes in _WAYS:
        rows = np.flatnonzero(np.isin(ops["code"], codes))
        if len(rows):
            where = upload(torch.from_numpy(rows), images.device)
            done.index_copy_(0, where, way(images.index_select(0, where), ops[rows]))
    return done


def _fixed_table(images: Tensor, ops: np.ndarray) -> Tensor:
    tables = np.stack([_table(OPS[op["code"]], float(op["value"])) for op in ops])
    there = upload(torch.from_numpy(tables.astype(np.uint8)), images.device)
    return pixels.look_up(images, there[:, None])


def _table(name: str, value: float) -> np.ndarray:
    """Return what each value of an image becomes where only the operation decides it."""
    match name:
        case "Invert":
            return 255 - _VALUES
        case "Posterize":
            return _VALUES & ~(2 ** (8 - int(value)) - 1)
        case "Solarize":
            return np.where(value > _VALUES, _VALUES, 255 - _VALUES)
        case "SolarizeAdd":
            added = np.minimum(_VALUES + int(value), 255)
            return np.where(_VALUES < SOLARIZE_ADD_BELOW, added, _VALUES)
        case "Brightness":
            return np.clip(_VALUES.astype(np.float32) * np.float32(value), 0, 255)
    raise AssertionError(f"no table for {name}")


def _contrast(images: Tensor, ops: np.ndarray) -> Tensor:
    return pixels.look_up(images, pixels.contrast_tables(images, _factors(images, ops)))


def _stretch(images: Tensor, ops: np.ndarray) -> Tensor:
    return pixels.look_up(images, pixels.stretch_tables(images))


def _equalize(images: Tensor, ops: np.ndarray) -> Tensor:
    return pixels.look_up(images, pixels.equal_tables(images))


def _saturate(images: Tensor, ops: np.ndarray) -> Tensor:
    return pixels.saturate(images, _factors(images, ops))


def _sharpen(images: Tensor, ops: np.ndarray) -> Tensor:
    return pixels.sharpen(images, _factors(images, ops))


def _warp(images: Tensor, ops: np.ndarray) -> Tensor:
    matrices = torch.tensor(_matrices(ops, images.shape[1], _fixed), dtype=torch.int32)
    return pixels.warp(images, upload(matrices, images.device), _outside(images, ops))


def _warp_smooth(images: Tensor, ops: np.ndarray) -> Tensor:
    matrices = torch.tensor(_matrices(ops, images.shape[1], list), dtype=torch.float64)
    return pixels.warp_smooth(images, upload(matrices, images.device), _outside(images, ops))


def _matrices(
    ops: np.ndarray, px: int, form: Callable[[Matrix], list[int] | list[float]]
) -> list[list[int] | list[float]]:
    return [form(_matrix(OPS[op["code"]], float(op["value"]), px)) for op in ops]


def _matrix(name: str, value: float, px: int) -> Matrix:
    """Return a warp's matrix, from the middle of a pixel to its place in the source."""
    if name.startswith("ShearX"):
        return 1, value, 0, 0, 1, 0
    if name.startswith("ShearY"):
        return 1, 0, 0, value, 1, 0
    if name.startswith("TranslateX"):
        return 1, 0, math.floor(value + 0.5), 0, 1, 0
    if name.startswith("TranslateY"):
        return 1, 0, 0, 0, 1, math.floor(value + 0.5)
    return _turn(value % 360.0, px)


def _turn(degrees: float, px: int) -> Matrix:
    """Turn around the centre; quarters exactly, the rest with Pillow's rounding to 15 digits."""
    quarters = {
        90.0: (0, -1, px, 1, 0, 0),
        180.0: (-1, 0, px, 0, -1, px),
        270.0: (0, 1, 0, -1, 0, px),
    }
    if degrees in quarters:
        return quarters[degrees]
    angle, centre = -math.radians(degrees), px / 2
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    c = cos * -centre + sin * -centre + centre
    f = -sin * -centre + cos * -centre + centre
    return cos, sin, c, -sin, cos, f


def _fixed(matrix: Matrix) -> list[int]:
    """Return the matrix in 16.16 fixed point, with the way to a pixel's middle in it."""
    a, b, c, d, e, f = matrix
    moved = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return [math.floor(number * pixels.FIXED_ONE + 0.5) for number in moved]


def _outside(images: Tensor, ops: np.ndarray) -> Tensor:
    """Return what lies outside: black for torchvision's warps, grey for the official ones."""
    black = [OPS[code].endswith(("Black", "Bilinear")) for code in ops["code"]]
    return upload(torch.tensor([0 if b else GREY for b in black], dtype=torch.uint8), images.device)


def _cutout(images: Tensor, ops: np.ndarray) -> Tensor:
    half = ops["value"].astype(np.int64)
    box = np.stack([ops["x"] - half, ops["y"] - half, ops["x"] + half, ops["y"] + half], 1)
    return _cover_grey(images, box)


def _grey_box(images: Tensor, ops: np.ndarray) -> Tensor:
    return _cover_grey(images, _boxes(ops))


def _noise_box(images: Tensor, ops: np.ndarray) -> Tensor:
    seeds = upload(torch.from_numpy(ops["value"].astype(np.int64)), images.device)
    box = upload(torch.from_numpy(_boxes(ops)), images.device)
    return pixels.cover(images, box, pixels.noise(seeds, images.shape[1]))


def _cover_grey(images: Tensor, box: np.ndarray) -> Tensor:
    grey = torch.full((), GREY, dtype=torch.uint8, device=images.device)
    return pixels.cover(images, upload(torch.from_numpy(box), images.device), grey)


def _boxes(ops: np.ndarray) -> np.ndarray:
    """Return (n, 4) left, top, right, bottom, as `ops.box_op` packed them."""
    x, y = ops["x"].astype(np.int64), ops["y"].astype(np.int64)
    return np.stack([x % _SPAN, y % _SPAN, x // _SPAN, y // _SPAN], 1)


def _factors(images: Tensor, ops: np.ndarray) -> Tensor:
    return upload(torch.from_numpy(ops["value"].astype(np.float32)), images.device)


_NAMES: dict[Callable[[Tensor, np.ndarray], Tensor], tuple[str, ...]] = {
    _fixed_table: ("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness"),
    _contrast: ("Contrast",),
    _stretch: ("AutoContrast",),
    _equalize: ("Equalize",),
    _saturate: ("Color",),
    _sharpen: ("Sharpness",),
    _warp: (
        *("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"),
        *("RotateBlack", "ShearXBlack", "ShearYBlack", "TranslateXBlack", "TranslateYBlack"),
    ),
    _warp_smooth: ("RotateBilinear", "ShearXBilinear", "ShearYBilinear"),
    _cutout: ("Cutout",),
    _grey_box: ("GreyBox",),
    _noise_box: ("NoiseBox",),
}
"""How each operation works; a test sees to it that none is missing."""
_WAYS = [(way, [CODES[name] for name in names]) for way, names in _NAMES.items()]
