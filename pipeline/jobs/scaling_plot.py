"""Draws an expected scaling curve: cards against times as fast, both in powers of two.

The file stands alone: it carries the report's style, light and dark.
"""

import math
from collections.abc import Sequence

from pipeline.plan.scaling import Point
from pipeline.report.style import STYLE
from pipeline.report.svg import Scale, figure, path, text_of, words

WIDTH, HEIGHT = 720.0, 440.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 24.0, 46.0, 44.0


def plot(points: Sequence[Point], title: str) -> str:
    """Return an SVG file of the scaling that `points` tell, with linear scaling beside it."""
    alone_s = points[0].estimate.total_s * points[0].estimate.ranks
    counts = [point.capacity for point in points]
    speeds = [alone_s / point.estimate.total_s for point in points]
    cut = [alone_s / (point.cut or point.estimate).total_s for point in points]
    x = Scale(math.log2(counts[0]), math.log2(counts[-1]), LEFT, WIDTH - RIGHT)
    y = Scale(math.log2(speeds[0]), math.log2(counts[-1]), HEIGHT - BOTTOM, TOP)
    body = [*_axes(counts, x, y), words(LEFT, 16, title, "value")]
    body += _curve(counts, [float(count) for count in counts], x, y, 3, "linear", 0)
    body += _curve(counts, speeds, x, y, 1, "the recipe as it is", 1)
    if any(point.cut for point in points):
        body += _curve(counts, cut, x, y, 2, "micro-batches cut so that all cards work", 2)
    under = [
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH:g}" height="{HEIGHT:g}" style="fill: var(--card)"/>',
    ]
    drawn = figure(WIDTH, HEIGHT, f"{title}: expected scaling", [*under, *body])
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _axes(counts: Sequence[int], x: Scale, y: Scale) -> list[str]:
    parts = []
    for count in counts:
        at, up = x(math.log2(count)), y(math.log2(count))
        parts.append(f'<path d="M{LEFT:g} {up:.1f}H{WIDTH - RIGHT:g}" class="grid"/>')
        parts.append(words(LEFT - 6, up + 4, f"{count}x", "tick", "end"))
        parts.append(words(at, HEIGHT - BOTTOM + 16, str(count), "tick", "middle"))
    parts.append(f'<path d="M{LEFT:g} {HEIGHT - BOTTOM:g}H{WIDTH - RIGHT:g}" class="axis"/>')
    parts.append(words(WIDTH - RIGHT, HEIGHT - 8, "cards", "tick", "end"))
    return parts


def _curve(
    counts: Sequence[int],
    speeds: Sequence[float],
    x: Scale,
    y: Scale,
    number: int,
    name: str,
    place: int,
) -> list[str]:
    """Return a line with a dot for each number of cards, and its entry in the legend."""
    at = [
        (x(math.log2(count)), y(math.log2(speed)))
        for count, speed in zip(counts, speeds, strict=True)
    ]
    left = LEFT + (0.0, 90.0, 250.0)[place]
    parts = [
        f'<rect x="{left:g}" y="25" width="14" height="4" class="bar line{number}"/>',
        words(left + 20, 31, name),
        f'<path d="{path(at)}" class="line line{number}"/>',
    ]
    for (across, up), count, speed in zip(at, counts, speeds, strict=True):
        parts.append(
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="2.6" class="dot line{number}">'
            f"<title>{text_of(f'{name}: {count} cards {speed:.3g}x')}</title></circle>"
        )
    return parts
