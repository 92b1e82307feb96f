"""What is taken for what: a matrix for few classes, the worst mistakes for many."""

from collections.abc import Sequence

from pipeline.report.facts import Evaluation
from pipeline.report.svg import figure, text_of, words

MAX_MATRIX_CLASSES = 40
MAX_NUMBERED_CLASSES = 20
CELL, TOP = 30.0, 18.0
NUM_MISTAKES = 15
CHAR_PX = 6.6


def confusion(evaluation: Evaluation) -> str:
    """Return the HTML of the matrix and the commonest mistakes; empty where nothing was counted."""
    counts = evaluation.confusion
    if not counts:
        return ""
    worst = _mistakes(evaluation)
    if len(counts) > MAX_MATRIX_CLASSES:
        return worst
    return f'<div class="beside"><div class="wide">{_matrix(evaluation, counts)}</div>{worst}</div>'


def _matrix(evaluation: Evaluation, counts: Sequence[Sequence[int]]) -> str:
    names = [_cut(evaluation.name(i)) for i in range(len(counts))]
    left = 30 + CHAR_PX * max(len(name) for name in names)
    numbered = len(counts) <= MAX_NUMBERED_CLASSES
    cell = CELL if numbered else 14.0
    side = cell * len(counts)
    slanted = max(len(name) for name in names) > 3
    turned = words(0, 0, "true", "tick", "middle").replace(
        "<text ", f'<text transform="translate(11 {TOP + side / 2:.0f}) rotate(-90)" ', 1
    )
    body = [words(left + side / 2, 11, "predicted", "tick", "middle"), turned]
    for true, row in enumerate(counts):
        y = TOP + true * cell
        body.append(words(left - 6, y + cell / 2 + 4, names[true], "tick", "end"))
        total = sum(row)
        for predicted, count in enumerate(row):
            if count:
                said = (evaluation.name(true), evaluation.name(predicted))
                body.append(_cell(left + predicted * cell, y, cell, count, total, said, numbered))
    body.append(
        f'<rect x="{left:g}" y="{TOP:g}" width="{side:g}" height="{side:g}" class="frame"/>'
    )
    bottom = TOP + side
    for i, name in enumerate(names):
        x = left + (i + 0.5) * cell
        if slanted:
            turned = f'transform="rotate(-40 {x:.1f} {bottom + 12:.1f})"'
            label = words(x + 4, bottom + 14, name, "tick", "end")
            body.append(label.replace("<text ", f"<text {turned} ", 1))
        else:
            body.append(words(x, bottom + 15, name, "tick", "middle"))
    below = 20 + (CHAR_PX * 0.66 * max(len(name) for name in names) if slanted else 0)
    width, height = left + side + 8, bottom + below
    label = f"confusion matrix of {len(counts)} classes"
    drawn = figure(width, height, label, body)
    sizes = f"min-width:{min(0.88 * width, 620):.0f}px;max-width:{1.25 * width:.0f}px"
    return f'<div style="{sizes}">{drawn}</div>'


def _cell(
    x: float, y: float, cell: float, count: int, total: int, said: tuple[str, str], numbered: bool
) -> str:
    true, predicted = said
    share = count / total
    right = true == predicted
    strength = 0.12 + 0.78 * (share if right else share**0.5)
    style = "right" if right else "wrong"
    text = words(x + cell / 2, y + cell / 2 + 4, str(count), "count", "middle") if numbered else ""
    if strength > 0.6:
        text = text.replace('class="count"', 'class="count strong"')
    return (
        f'<g><rect x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{cell - 1:g}" '
        f'height="{cell - 1:g}" rx="2" class="{style}" fill-opacity="{strength:.2f}"/>{text}'
        f"<title>{text_of(true)} taken for {text_of(predicted)}: {count:,} of {total:,} "
        f"({share:.1%})</title></g>"
    )


def _mistakes(evaluation: Evaluation) -> str:
    """Return a table of the commonest mistakes."""
    counts = evaluation.confusion or ()
    found = [
        (count, true, predicted)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not found:
        return "<p>Not one mistake.</p>"
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    rows = "".join(
        f"<tr><td>{text_of(evaluation.name(true))}</td><td>{text_of(evaluation.name(predicted))}"
        f'</td><td class="number">{count:,} of {sum(counts[true]):,}</td></tr>'
        for count, true, predicted in found[:NUM_MISTAKES]
    )
    return (
        '<div class="wide"><table><caption>Commonest mistakes</caption><thead><tr><th>True class'
        '</th><th>Taken for</th><th class="number">Images</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cut(name: str, length: int = 16) -> str:
    return name if len(name) <= length else name[: length - 1] + "\u2026"
