"""The figures of the page: images per class, and sizes of images."""

import math
from collections.abc import Sequence

import numpy as np

from pipeline.report.svg import Scale, figure, nice_ticks, short, text_of, words

WIDTH, HEIGHT = 480.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 14.0, 36.0
MAX_BARS = 30
"""Up to so many classes each one gets a bar with its name; more make a curve by rank."""
_BAR, _GAP, _NAMES, _MAX_NAME = 15.0, 5.0, 132.0, 22
_BINS_PER_OCTAVE = 6
_MAX_POINTS = 400


def classes(counts: Sequence[int], names: Sequence[str]) -> str:
    """Return a drawing of the images per class; `names` are those of all classes, by index."""
    if len(counts) <= MAX_BARS:
        return _bars(counts, names)
    return _ranks(sorted(counts, reverse=True))


def _bars(counts: Sequence[int], names: Sequence[str]) -> str:
    x = Scale(0.0, max(1, *counts), _NAMES, WIDTH - 60)
    body = []
    for row, (count, name) in enumerate(zip(counts, names, strict=True)):
        y = row * (_BAR + _GAP)
        shown = name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}\u2026"
        body.append(words(_NAMES - 8, y + 11.5, shown, "tick", "end"))
        body.append(
            f'<rect x="{_NAMES:g}" y="{y:g}" width="{max(x(count) - _NAMES, 0.5):.1f}" '
            f'height="{_BAR:g}" rx="2" class="bar"><title>{text_of(name)}: {count:,} images'
            "</title></rect>"
        )
        body.append(words(x(count) + 6, y + 11.5, f"{count:,}", "value"))
    return figure(WIDTH, len(counts) * (_BAR + _GAP), "images per class", body)


def _ranks(counts: Sequence[int]) -> str:
    """Draw the classes from the largest to the smallest, as an area."""
    x = Scale(0.0, len(counts), LEFT, WIDTH - RIGHT)
    y = Scale(0.0, max(1, counts[0]), HEIGHT - BOTTOM, TOP)
    step = max(1, len(counts) // _MAX_POINTS)
    line = f"M{x(0):.1f} {y(0):.1f}"
    for rank in range(0, len(counts), step):
        end = min(rank + step, len(counts))
        line += f"V{y(counts[rank]):.1f}H{x(end):.1f}"
    body = [*_grid(y), f'<path d="{line}V{y(0):.1f}Z" class="bar"/>']
    for rank in nice_ticks(0.0, len(counts), 5):
        body.append(words(x(rank), HEIGHT - BOTTOM + 15, short(rank), "tick", "middle"))
    body.append(words(WIDTH - RIGHT, HEIGHT - 5, "classes, largest first", "tick", "end"))
    return figure(WIDTH, HEIGHT, "images per class, from the largest class to the smallest", body)


def sizes(values: np.ndarray, unit: str) -> str:
    """Return a histogram of positive values on a logarithmic axis; nothing where all are equal.

    Args:
        values: (N,) one for each image.
        unit: px or bytes, for the axis.
    """
    low, high = float(values.min()), float(values.max())
    if not 0 < low < high:
        return ""
    first, last = (math.floor(math.log2(v) * _BINS_PER_OCTAVE + 1e-9) for v in (low, high))
    edges = 2.0 ** (np.arange(first, last + 2) / _BINS_PER_OCTAVE)
    counts, _ = np.histogram(values, edges)
    x = Scale(math.log(edges[0]), math.log(edges[-1]), LEFT, WIDTH - RIGHT)
    y = Scale(0.0, float(counts.max()), HEIGHT - BOTTOM, TOP)
    body = _grid(y)
    for number, count in enumerate(counts.tolist()):
        if not count:
            continue
        start, end = (x(math.log(edge)) for edge in edges[number : number + 2])
        said = f"{short(edges[number])} to {short(edges[number + 1])} {unit}: {count:,} images"
        top = min(y(count), y(0) - 0.8)
        body.append(
            f'<rect x="{start + 0.75:.1f}" y="{top:.1f}" width="{max(end - start - 1.5, 0.5):.1f}" '
            f'height="{y(0) - top:.1f}" rx="1.5" class="bar"><title>{text_of(said)}</title></rect>'
        )
    body += _log_ticks(x, float(edges[0]), float(edges[-1]))
    body += _median(x, float(np.median(values)), unit)
    return figure(WIDTH, HEIGHT, f"histogram of {unit}", body)


def _grid(y: Scale) -> list[str]:
    body = []
    for tick in filter(float.is_integer, nice_ticks(0.0, y.high, 4)):
        body.append(
            f'<path d="M{LEFT:g} {y(tick):.1f}H{WIDTH - RIGHT:g}" '
            f'class="{"grid" if tick else "base"}"/>'
        )
        body.append(words(LEFT - 6, y(tick) + 4, short(tick), "tick", "end"))
    return body


def _log_ticks(x: Scale, low: float, high: float) -> list[str]:
    """Return ticks at 1, 2 and 5 times powers of ten; only at the powers where that is crowded."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 3000 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [
        words(x(math.log(tick)), HEIGHT - BOTTOM + 15, short(tick), "tick", "middle")
        for tick in ticks
        if low <= tick <= high
    ]


def _median(x: Scale, value: float, unit: str) -> list[str]:
    at = x(math.log(value))
    is_right = at > WIDTH * 0.6
    return [
        f'<path d="M{at:.1f} {TOP - 6:g}V{HEIGHT - BOTTOM:g}" class="median"/>',
        words(
            at + (-5 if is_right else 5),
            TOP - 2,
            f"median {short(round(value))} {unit}",
            "value",
            "end" if is_right else "start",
        ),
    ]
