"""Draws what `loader.py` measured: a bar for each ratio, with what was asked and what was aimed at.

The file stands alone: it carries the report's style, light and dark.
"""

from collections.abc import Iterator

from loader_table import DATA, ROWS, Results, Row, ratios

from pipeline.report.style import STYLE
from pipeline.report.svg import Scale, figure, nice_ticks, text_of, words

WIDTH, LEFT, RIGHT, TOP = 760.0, 60.0, 60.0, 34.0
BAR, GAP, HEAD = 13.0, 6.0, 26.0


def plot(results: Results) -> str:
    """Return an SVG file with the ratios of all rows."""
    rows = [(row, px, ratios(results, row, px)) for row, px in _measured(results)]
    largest = max([value or 0.0 for _, _, found in rows for value in found], default=1.0)
    largest = max([largest, *(value for row, _, _ in rows for value in (*row.asked, *row.aim))])
    x = Scale(0.0, largest, LEFT, WIDTH - RIGHT)
    body, y, title = _legend(), TOP, ""
    for row, px, found in rows:
        if row.title != title:
            title, y = row.title, y + HEAD
            body.append(words(8, y - 7, f"times as fast as {title}", "value"))
        body.append(words(LEFT - 8, y + BAR * len(found) / 2 + 4, f"{px} px", "tick", "end"))
        for number, ratio in enumerate(found):
            body += _bar(x, y + number * BAR, row, number, ratio)
        y += BAR * len(found) + GAP
    grid = [
        f'<path d="M{x(tick):.1f} {TOP:g}V{y:g}" class="grid"/>'
        + words(x(tick), y + 13, f"{tick:g}x", "tick", "middle")
        for tick in nice_ticks(0.0, largest, 7)
    ]
    height = y + 20
    under = [
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH:g}" height="{height:g}" style="fill: var(--card)"/>',
    ]
    drawn = figure(WIDTH, height, "ratios of the loader benchmark", [*under, *grid, *body])
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _measured(results: Results) -> Iterator[tuple[Row, int]]:
    for row in ROWS:
        for px in results.sizes(row.part):
            if any(ratios(results, row, px)):
                yield row, px


def _legend() -> list[str]:
    body = []
    for number, name in enumerate(DATA):
        at = LEFT + 150 * number
        body.append(f'<rect x="{at:g}" y="8" width="12" height="12" class="bar line{number + 1}"/>')
        body.append(words(at + 18, 18, name, "value"))
    at = LEFT + 150 * len(DATA)
    body.append(f'<path d="M{at:g} 7v14" class="whisker"/>' + words(at + 8, 18, "asked", "value"))
    body.append(f'<path d="M{at + 64:g} 7v14" class="published"/>')
    return [*body, words(at + 72, 18, "aim", "value")]


def _bar(x: Scale, y: float, row: Row, number: int, ratio: float | None) -> Iterator[str]:
    if ratio is None:
        return
    label = f"{DATA[number]}: {ratio:.2f}x, asked {row.asked[number]:g}x"
    yield (
        f'<rect x="{LEFT:g}" y="{y:.1f}" width="{x(ratio) - LEFT:.1f}" height="{BAR - 2:g}" '
        f'class="bar line{number + 1}"><title>{text_of(label)}</title></rect>'
    )
    yield f'<path d="M{x(row.asked[number]):.1f} {y:.1f}v{BAR - 2:g}" class="whisker"/>'
    if row.aim:
        yield f'<path d="M{x(row.aim[number]):.1f} {y:.1f}v{BAR - 2:g}" class="published"/>'
    end = x(max(ratio, row.asked[number], *(row.aim[number : number + 1])))
    yield words(end + 5, y + BAR - 4, f"{ratio:.2f}", "value")
