"""Drawing by hand: scales, ticks and escaped SVG text; colours come from the page's style."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

SI = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def text_of(value: object) -> str:
    """Return `value` as text that is safe inside HTML, SVG and their attributes."""
    return html.escape(str(value), quote=True)


@dataclass(frozen=True)
class Scale:
    """A linear map from values [low, high] to positions [start, end] in px."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round values (1, 2 or 5 times a power of ten) inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.7)
    first = math.ceil(low / step - 1e-9)
    ticks = []
    while (first + len(ticks)) * step <= high + step * 1e-9:
        ticks.append((first + len(ticks)) * step)
    return ticks


def short(value: float) -> str:
    """Return a number for an axis: 12k, 0.25, 1e-5."""
    for size, suffix in SI:
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def path(points: Sequence[tuple[float, float]]) -> str:
    """Return an SVG path through `points`, to a tenth of a px."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def figure(width: float, height: float, label: str, body: Sequence[str]) -> str:
    """Return an SVG element that scales with its place and says `label` to screen readers."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{text_of(label)}">'
        + "".join(body)
        + "</svg>"
    )


def words(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    """Return a line of text at (x, y); `style` is a class of the page's style."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">'
        f"{text_of(text)}</text>"
    )
