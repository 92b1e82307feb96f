"""Curves over steps, with the stages as shaded bands that carry their image size."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.facts import RunReport, Series, StageRow
from pipeline.report.svg import Scale, figure, nice_ticks, path, short, text_of, words

WIDTH, HEIGHT = 440.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 26.0, 30.0
MAX_POINTS = 220
MIN_LABEL_PX = 30.0
CLIP = (
    f'<clipPath id="plot"><rect x="{LEFT:g}" y="{TOP:g}" width="{WIDTH - LEFT - RIGHT + 4:g}" '
    f'height="{HEIGHT - TOP - BOTTOM:g}"/></clipPath>'
)
"""What the page defines once, so that no curve leaves its axes."""


@dataclass(frozen=True)
class Line:
    """One metric in a chart; `dots` marks its single points, `stairs` holds values in between."""

    key: str
    title: str
    dots: bool = False
    stairs: bool = False


@dataclass(frozen=True)
class Chart:
    """What a chart shows; `text` formats values, `from_zero` starts the axis there.

    `settled`: of all lines but the first, the first third of the steps may lie above the chart
    (the averaged weights' loss begins many times higher than it ends).
    """

    title: str
    lines: Sequence[Line]
    text: Callable[[float], str] = short
    from_zero: bool = False
    settled: bool = False


def percent(value: float) -> str:
    """Return a fraction as percent, with decimals only where it needs them."""
    return f"{100 * value:.4g}%"


CHARTS = (
    Chart(
        "Loss",
        (Line("train/loss", "training"), Line("eval/loss", "held out", dots=True)),
        settled=True,
    ),
    Chart(
        "Accuracy on held-out images",
        (Line("eval/top1", "top-1", dots=True), Line("eval/top5", "top-5", dots=True)),
        percent,
    ),
    Chart("Learning rate", (Line("train/lr", "learning rate"),), from_zero=True),
    Chart("Image size", (Line("stage/px", "px", stairs=True),), from_zero=True),
)


def charts(run: RunReport) -> list[str]:
    """Return the HTML of every chart for which the run has points."""
    series = dict(run.series)
    if run.evaluation is not None and 0 < len(run.evaluation.classes) <= 5:
        series.pop("eval/top5", None)  # of five classes it is always all of them
    drawn = [_draw(chart, series, run.stages, run.steps) for chart in CHARTS]
    return [html for html in drawn if html]


def _draw(
    chart: Chart, series: Mapping[str, Series], stages: Sequence[StageRow], steps: int
) -> str:
    there = {line: _finite(series.get(line.key, ())) for line in chart.lines}
    there = {line: points for line, points in there.items() if points}
    if not there:
        return ""
    low, high = _range(_deciding(list(there.values()), chart, steps), chart)
    x = Scale(0, max(steps, 1), LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    body = [*_bands(stages, x), *_axes(x, y, chart.text)]
    body.append('<g clip-path="url(#plot)">')
    for number, (line, points) in enumerate(there.items(), start=1):
        body += _line(line, points, x, y, number, chart.text)
    body.append("</g>")
    label = f"{chart.title} over {steps} steps"
    legend = "".join(
        f'<span class="key line{number}">{text_of(line.title)}{_above(points, high, chart)}</span>'
        for number, (line, points) in enumerate(there.items(), start=1)
    )
    legend = f'<span class="legend">{legend}</span>' if len(there) > 1 else ""
    caption = f"<figcaption><b>{text_of(chart.title)}</b>{legend}</figcaption>"
    return f'<figure class="chart">{caption}{figure(WIDTH, HEIGHT, label, body)}</figure>'


def _finite(points: Series) -> list[tuple[int, float]]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _range(values: Sequence[float], chart: Chart) -> tuple[float, float]:
    low, high = min(values), max(values)
    if chart.from_zero:
        low = min(low, 0.0)
    if chart.text is percent:
        high = min(1.0, high + 0.05 * (high - low))
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low if chart.from_zero else low - margin), high + margin


def _deciding(lines: list[list[tuple[int, float]]], chart: Chart, steps: int) -> list[float]:
    """Return the values that must be inside the chart."""
    first = [value for _, value in lines[0]]
    if not chart.settled or len(lines) == 1:
        return [value for points in lines for _, value in points]
    return first + [v for points in lines[1:] for step, v in points if step > steps / 3]


def _above(points: list[tuple[int, float]], high: float, chart: Chart) -> str:
    most = max(value for _, value in points)
    return f" (from {chart.text(most)})" if most > high else ""


def _bands(stages: Sequence[StageRow], x: Scale) -> list[str]:
    height = HEIGHT - TOP - BOTTOM
    parts = []
    for number, stage in enumerate(stages):
        left, right = x(stage.start), x(stage.end)
        parts.append(
            f'<rect x="{left:.1f}" y="{TOP:g}" width="{max(0.0, right - left):.1f}" '
            f'height="{height:g}" class="band{number % 2}"><title>stage {stage.index + 1}: '
            f"{stage.px} px, steps {stage.start:,} to {stage.end:,}</title></rect>"
        )
        if right - left >= MIN_LABEL_PX:
            label = f"{stage.px} px" if right - left >= 1.4 * MIN_LABEL_PX else f"{stage.px}"
            parts.append(words((left + right) / 2, TOP - 7, label, "stage", "middle"))
    return parts


def _axes(x: Scale, y: Scale, text: Callable[[float], str]) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in nice_ticks(y.low, y.high, 5):
        at = y(tick)
        parts.append(f'<path d="M{LEFT:g} {at:.1f}H{WIDTH - RIGHT:g}" class="grid"/>')
        parts.append(words(LEFT - 6, at + 4, text(tick), "tick", "end"))
    for tick in nice_ticks(x.low, x.high, 5):
        anchor = "end" if x(tick) > WIDTH - RIGHT - 10 else "middle"
        parts.append(words(x(tick), bottom + 16, short(tick), "tick", anchor))
    parts.append(f'<path d="M{LEFT:g} {bottom:.1f}H{WIDTH - RIGHT:g}" class="axis"/>')
    parts.append(words(WIDTH - RIGHT, HEIGHT - 2, "step", "tick", "end"))
    return parts


def _line(
    line: Line,
    points: list[tuple[int, float]],
    x: Scale,
    y: Scale,
    number: int,
    text: Callable[[float], str],
) -> list[str]:
    if line.stairs:
        corners = [(x(step), y(value)) for step, value in _stairs(points)]
        return [f'<path d="{path(corners)}" class="line line{number}"/>']
    buckets = _buckets(points)
    parts = []
    if len(buckets) < len(points):  # show what the mean hides
        upper = [(x(step), y(high)) for step, _, _, high in buckets]
        lower = [(x(step), y(low)) for step, _, low, _ in reversed(buckets)]
        parts.append(f'<path d="{path([*upper, *lower])}Z" class="spread line{number}"/>')
    middle = [(x(step), y(mean)) for step, mean, _, _ in buckets]
    parts.append(f'<path d="{path(middle)}" class="line line{number}"/>')
    if line.dots and len(points) <= 60:
        parts += [
            f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.6" class="dot line{number}">'
            f"<title>{text_of(line.title)} at step {step:,}: {text(value)}</title></circle>"
            for step, value in points
        ]
    return parts


def _stairs(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    corners = [(0, points[0][1])]
    for (before, old), (step, new) in zip(points, points[1:], strict=False):
        if new != old:
            corners += [(before, old), (before, new)]
        del step
    return [*corners, points[-1]]


def _buckets(points: list[tuple[int, float]]) -> list[tuple[float, float, float, float]]:
    """Return (middle step, mean, lowest, highest) of at most MAX_POINTS groups of points."""
    size = max(1, math.ceil(len(points) / MAX_POINTS))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    rows = []
    for group in groups:
        values = [value for _, value in group]
        middle = (group[0][0] + group[-1][0]) / 2
        rows.append((middle, sum(values) / len(values), min(values), max(values)))
    return rows
