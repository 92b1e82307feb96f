"""Pixel kernels in torch that give Pillow's bytes, for whole groups of images on any device.

All take (G, px, px, 3) uint8 and return the same shape; a parameter has one entry per image. They
follow Pillow's own arithmetic (integers, 16.16 fixed point, float32 blends that truncate), so that
a GPU, a CPU and Pillow agree bit by bit; nothing here waits for the device.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (19595, 38470, 7471)
"""Pillow's weights of R, G and B for grey, in units of 1 / 65536 (ITU-R 601-2)."""
FIXED_ONE = 1 << 16
WEYL, LOW_32 = 0x9E3779B9, 0xFFFFFFFF


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each value by its entry in `tables`, (G, 3, 256) uint8, or (G, 1, 256) for all."""
    count, channels = len(images), tables.shape[1]
    start = torch.arange(count * channels, dtype=torch.int32, device=images.device) * 256
    places = images.int() + start.view(count, 1, 1, channels)
    return tables.reshape(-1).index_select(0, places.view(-1)).view(images.shape)


def warp(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Take for each (x, y) the nearest source pixel; outside is `fill`, (G,) uint8.

    `matrix` is (G, 6) int32 in 16.16 fixed point: the source is at a x + b y + c, d x + e y + f,
    half a pixel already added to c and f; its whole part is the pixel's number.
    """
    count, px = images.shape[:2]
    line = torch.arange(px, dtype=torch.int32, device=images.device)
    a, b, c, d, e, f = matrix.view(-1, 6, 1, 1).unbind(1)
    x = (a * line + (b * line[:, None] + c)) >> 16
    y = (d * line + (e * line[:, None] + f)) >> 16
    inside = (x >= 0) & (x < px) & (y >= 0) & (y < px)
    start = torch.arange(count, dtype=torch.int32, device=images.device).view(-1, 1, 1) * px
    source = ((start + y) * px + x).masked_fill_(~inside, 0)
    taken = images.reshape(-1, 3).index_select(0, source.view(-1)).view(images.shape)
    return torch.where(inside[..., None], taken, fill.view(-1, 1, 1, 1))


def warp_smooth(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Mix for each (x, y) the four source pixels around its place; outside is `fill`, (G,) uint8.

    `matrix` is (G, 6) float64, applied to the middle of a pixel; products, sums and truncation are
    in the order of Pillow's bilinear transform.
    """
    px = images.shape[1]
    line = torch.arange(px, dtype=torch.float64, device=images.device) + 0.5
    a, b, c, d, e, f = matrix.view(-1, 6, 1, 1).unbind(1)
    x = a * line + b * line[:, None] + c
    y = d * line + e * line[:, None] + f
    inside = (x >= 0) & (x < px) & (y >= 0) & (y < px)
    left, top = (x - 0.5).floor(), (y - 0.5).floor()
    across, down = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
    upper = _between(images, left, top, across)
    lower = _between(images, left, top + 1, across)
    mixed = (upper + (lower - upper) * down).to(torch.uint8)
    return torch.where(inside[..., None], mixed, fill.view(-1, 1, 1, 1))


def _between(images: Tensor, left: Tensor, row: Tensor, share: Tensor) -> Tensor:
    """Mix pixels `left` and `left` + 1 of a row, (G, px, px, 3) float64; the edge goes on."""
    px = images.shape[1]
    start = torch.arange(len(images), device=images.device).view(-1, 1, 1) * (px * px)
    base = start + row.clamp(0, px - 1).long() * px
    first, second = (
        images.reshape(-1, 3)
        .index_select(0, (base + column.clamp(0, px - 1).long()).view(-1))
        .view(images.shape)
        .double()
        for column in (left, left + 1)
    )
    return first + (second - first) * share


def saturate(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the grey image (Pillow's Color); 0 is grey, 1 the image, (G,) float32."""
    return _blend(grey(images)[..., None], images, factors)


def sharpen(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the smoothed image (Pillow's Sharpness); 0 is smooth, 1 the image, (G,) float32.

    The outermost pixels have no whole neighbourhood and stay as they are.
    """
    values = images.int()
    smooth = values.clone()
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    middle = values[:, 1:-1, 1:-1]
    # Twice (neighbours + 5 middle) / 13 + 1/2: no sum of bytes makes that a tie.
    smooth[:, 1:-1, 1:-1] = (2 * (box + 4 * middle) + 13) // 26
    return _blend(smooth, images, factors)


def cover(images: Tensor, box: Tensor, fill: Tensor) -> Tensor:
    """Paint `fill`, of the images' shape or one that expands to it, over a box.

    `box` is (G, 4) left, top, right, bottom and may lie partly outside.
    """
    left, top, right, bottom = box.view(-1, 4, 1, 1).unbind(1)
    line = torch.arange(images.shape[1], device=images.device)
    rows, columns = line[:, None], line
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return torch.where(inside[..., None], fill, images)


def noise(seeds: Tensor, px: int) -> Tensor:
    """Return the noise of `ops_pillow.noise` for (G,) int64 seeds below 2^32, (G, px, px, 3)."""
    counter = torch.arange(px * px, device=seeds.device) * WEYL
    bits = (counter + seeds[:, None]) & LOW_32
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & LOW_32
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & LOW_32  # wraps at 2^64: the low bits are right
    bits = bits ^ (bits >> 16)
    channels = torch.stack([bits, bits >> 8, bits >> 16], -1) & 255
    return channels.to(torch.uint8).view(-1, px, px, 3)


def contrast_tables(images: Tensor, factors: Tensor) -> Tensor:
    """Return tables that blend with the mean grey (Pillow's Contrast), (G, 1, 256)."""
    count = images.shape[1] * images.shape[2]
    total = grey(images).sum((1, 2), dtype=torch.int64)
    mean = (2 * total + count) // (2 * count)
    every = torch.arange(256, device=images.device)
    return _blend(mean.view(-1, 1, 1), every.expand(len(images), 1, 256), factors)


def stretch_tables(images: Tensor) -> Tensor:
    """Return tables that stretch each channel to the full range (ImageOps.autocontrast)."""
    flat = images.reshape(len(images), -1, 3)
    low, high = flat.amin(1).double()[..., None], flat.amax(1).double()[..., None]
    every = torch.arange(256, dtype=torch.float64, device=images.device)
    span = (high - low).clamp(min=1)
    scale = torch.full_like(span, 255.0) / span  # a plain 255.0 would multiply by the reciprocal
    offset = -low * scale
    stretched = (every * scale + offset).clamp(0, 255)
    return torch.where(high > low, stretched, every).to(torch.uint8)


def equal_tables(images: Tensor) -> Tensor:
    """Return tables that make each channel's histogram even (ImageOps.equalize)."""
    counts = histograms(images)
    every = torch.arange(256, device=images.device)
    highest = torch.where(counts > 0, every, -1).amax(-1, keepdim=True)
    total = counts.sum(-1, keepdim=True)
    step = (total - counts.gather(-1, highest)) // 255  # 0 where one value fills the channel
    below = F.pad(counts.cumsum(-1)[..., :-1], (1, 0))
    even = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, even, every).to(torch.uint8)


def histograms(images: Tensor) -> Tensor:
    """Return how often each value occurs, (G, 3, 256) int64."""
    count = len(images)
    start = torch.arange(count * 3, device=images.device) * 256
    places = (images.long() + start.view(count, 1, 1, 3)).view(-1)
    counts = torch.zeros(count * 3 * 256, dtype=torch.int64, device=images.device)
    ones = torch.ones((), dtype=torch.int64, device=images.device).expand_as(places)
    return counts.scatter_add_(0, places, ones).view(count, 3, 256)


def grey(images: Tensor) -> Tensor:
    """Return Pillow's grey, (G, px, px) int32."""
    red, green, blue = images.int().unbind(-1)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + FIXED_ONE // 2) >> 16


def _blend(zero: Tensor, one: Tensor, factors: Tensor) -> Tensor:
    """Return zero + factor (one - zero) in float32, clipped and truncated to uint8 as Pillow does.

    Product and sum are two operations on purpose: fused they would be rounded once, not twice.
    """
    factors = factors.view(-1, *[1] * (one.dim() - 1))
    product = (one.int() - zero.int()).float() * factors
    return (zero.float() + product).clamp(0, 255).to(torch.uint8)
