"""Resize of crops of any size, batched in torch on any device, with Pillow's pixels.

What each pixel of a side adds to each of the result is a matrix; the two directions are two batched
products. Antialiased, the taps are those of Pillow's resize and both products are rounded to bytes,
in Pillow's order; it rounds its taps to 22 bits and adds in integers, so values may differ by 1
where a sum lies on the edge between two bytes. Otherwise single points are sampled as by Pillow's
transform: nothing is rounded in between, and the result is truncated.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.data.preprocess import Interpolation
from pipeline.data.transfer import upload

GROUP_PIXELS = 1 << 23
"""Most pixels, padding included, that are resized at once; they take about 50 bytes each."""
_RESIZE_CUBIC, _TRANSFORM_CUBIC = -0.5, -1.0  # Keys' a; Pillow has two
_NEARLY = 1 / 4096  # a sum of float32 products that is this near to a whole number is one


def resize_crops(
    crops: Sequence[Tensor], px: int, interpolation: Interpolation, antialias: bool = True
) -> Tensor:
    """Return (n, px, px, 3) uint8 for n crops, each (3, h, w) uint8 on the same device.

    Without `antialias` single points are sampled, as TensorFlow's resize does.
    """
    resized = torch.empty(len(crops), px, px, 3, dtype=torch.uint8, device=crops[0].device)
    orders = [antialias and _goes_down_first(crop.shape[1], crop.shape[2], px) for crop in crops]
    for down_first in (False, True):
        where = [number for number, order in enumerate(orders) if order == down_first]
        for group in _groups(where, crops):
            chosen = [crops[number] for number in group]
            done = _resize(chosen, px, interpolation, antialias, down_first)
            for number, image in zip(group, done, strict=True):
                resized[number] = image
    return resized


def _groups(numbers: list[int], crops: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield crops of like sizes together, so that padding stays small and memory bounded."""
    group: list[int] = []
    height = width = 0
    for number in sorted(numbers, key=lambda number: crops[number][0].numel()):
        shape = crops[number].shape
        height, width = max(height, shape[1]), max(width, shape[2])
        if group and (len(group) + 1) * height * width > GROUP_PIXELS:
            yield group
            group, (_, height, width) = [], shape
        group.append(number)
    if group:
        yield group


def _goes_down_first(height: int, width: int, px: int) -> bool:
    """Tell the order of the passes that Pillow 13 takes (before it, always across first)."""
    return height > px and height - px > 2 * (width - px)


def _resize(
    crops: list[Tensor], px: int, interpolation: Interpolation, antialias: bool, down_first: bool
) -> Tensor:
    heights, widths = ([crop.shape[side] for crop in crops] for side in (1, 2))
    size = (len(crops), 3, max(heights), max(widths))
    padded = torch.zeros(size, dtype=torch.uint8, device=crops[0].device)
    for place, crop in zip(padded, crops, strict=True):
        place[:, : crop.shape[1], : crop.shape[2]] = crop
    weights = taps if antialias else points
    across = weights(widths, px, interpolation, padded.device).transpose(1, 2)[:, None]
    down = weights(heights, px, interpolation, padded.device)[:, None]
    values = padded.float()
    if not antialias:
        values = (down @ (values @ across) + _NEARLY).clamp(0, 255)
    elif down_first:
        values = _rounded(_rounded(down @ values) @ across)
    else:
        values = _rounded(down @ _rounded(values @ across))
    return values.to(torch.uint8).permute(0, 2, 3, 1)


def taps(
    sizes: Sequence[int], px: int, interpolation: Interpolation, device: torch.device
) -> Tensor:
    """Return (n, px, longest) float32: what each input adds to each output; rows sum to one."""
    size = _sizes(sizes, device)
    scale = size / px
    widen = scale.clamp(min=1)
    support = widen * (1 if interpolation == "bilinear" else 2)
    centre = _middles(px, device) * scale
    first = (centre - support + 0.5).floor().clamp(min=0)
    stop = torch.minimum((centre + support + 0.5).floor(), size)
    inputs = torch.arange(max(sizes), dtype=torch.float64, device=device)
    weights = _filter((inputs - centre + 0.5) / widen, interpolation, _RESIZE_CUBIC)
    weights = torch.where((inputs >= first) & (inputs < stop), weights, 0.0)
    return (weights / weights.sum(2, keepdim=True)).float()


def points(
    sizes: Sequence[int], px: int, interpolation: Interpolation, device: torch.device
) -> Tensor:
    """Return the same for single points: 2 or 4 pixels each, beyond the edge the outermost."""
    size = _sizes(sizes, device)
    place = _middles(px, device) * (size / px) - 0.5
    reach = 1 if interpolation == "bilinear" else 2
    inputs = place.floor() + torch.arange(1 - reach, 1 + reach, device=device)
    weights = _filter(inputs - place, interpolation, _TRANSFORM_CUBIC)
    where = torch.minimum(inputs.clamp(min=0), size - 1).long()
    matrix = torch.zeros(len(sizes), px, max(sizes), dtype=torch.float64, device=device)
    return matrix.scatter_add_(2, where, weights).float()


def _sizes(sizes: Sequence[int], device: torch.device) -> Tensor:
    return upload(torch.tensor(sizes, dtype=torch.float64).view(-1, 1, 1), device)


def _middles(px: int, device: torch.device) -> Tensor:
    return torch.arange(px, dtype=torch.float64, device=device).view(1, -1, 1) + 0.5


def _filter(x: Tensor, interpolation: Interpolation, a: float) -> Tensor:
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _rounded(values: Tensor) -> Tensor:
    """Round to whole numbers of a byte, still as floats."""
    return (values + 0.5).floor().clamp(0, 255)
