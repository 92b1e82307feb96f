"""The transfer comparison: a bar for each way to start, with its spread over the seeds."""

import statistics
from collections.abc import Sequence

from pipeline.report.facts import TransferReport, TransferTask
from pipeline.report.svg import Scale, figure, text_of, words

WIDTH, BAR, GAP, TOP, LEFT, RIGHT = 440.0, 16.0, 5.0, 6.0, 78.0, 14.0
MIN_INSIDE_PX = 52.0


def transfer(report: TransferReport) -> str:
    """Return the HTML of the comparison: bars, then the same figures as a table."""
    done = [task for task in report.tasks if task.top1]
    ways = list(dict.fromkeys(way for task in done for way in task.top1))
    parts = [
        f"<p>Top-1 on held-out images of models that start from <code>{text_of(report.model)}"
        "</code>, beside the same training from random weights.</p>"
        if "scratch" in ways
        else f"<p>Top-1 of models that start from <code>{text_of(report.model)}</code>.</p>"
    ]
    parts += ['<div class="charts">', *(_bars(task, ways) for task in done), "</div>"]
    if done:
        parts.append(_table(done, ways))
    parts += [
        f"<p><b>{text_of(task.name)}</b>: {text_of(task.missing)}</p>"
        for task in report.tasks
        if task.missing
    ]
    return "".join(parts)


def _bars(task: TransferTask, ways: Sequence[str]) -> str:
    x = Scale(0.0, 1.0, LEFT, WIDTH - RIGHT)
    bottom = TOP + len(task.top1) * (BAR + GAP)
    body = [
        f'<path d="M{x(tick):.1f} 2V{bottom:g}" class="grid"/>'
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    row = 0
    for number, way in enumerate(ways, start=1):
        values = task.top1.get(way)
        if not values:
            continue
        y = TOP + row * (BAR + GAP)
        row += 1
        mean = statistics.mean(values)
        body.append(words(LEFT - 6, y + 11.5, way, "tick", "end"))
        body.append(
            f'<rect x="{LEFT:g}" y="{y:g}" width="{x(mean) - LEFT:.1f}" height="{BAR:g}" rx="2" '
            f'class="bar line{number}"><title>{text_of(way)}: {_figure(values)}</title></rect>'
        )
        if len(values) > 1:
            low, high = x(min(values)), x(max(values))
            body.append(
                f'<path d="M{low:.1f} {y + BAR / 2:g}H{high:.1f}M{low:.1f} {y + 4:g}v7'
                f'M{high:.1f} {y + 4:g}v7" class="whisker"/>'
            )
        inside = x(mean) - LEFT > MIN_INSIDE_PX
        at = LEFT + 7 if inside else x(max(values)) + 5
        body.append(words(at, y + 11.5, f"{mean:.1%}", "value inside" if inside else "value"))
    for who, value in task.published.items():
        body.append(
            f'<path d="M{x(value):.1f} 2V{bottom:g}" class="published"><title>published by '
            f"{text_of(who)}: {value:.1%}</title></path>"
        )
    drawn = figure(WIDTH, bottom + 2, f"top-1 on {task.name}", body)
    known = ", ".join(f"{text_of(who)} {value:.1%}" for who, value in task.published.items())
    known = f'<span class="legend"><span class="dashed">{known}</span></span>' if known else ""
    caption = f"<figcaption><b>{text_of(task.name)}</b>{known}</figcaption>"
    return f'<figure class="chart">{caption}{drawn}</figure>'


def _table(tasks: Sequence[TransferTask], ways: Sequence[str]) -> str:
    heads = "".join(f'<th class="number">{text_of(way)}</th>' for way in ways)
    published = any(task.published for task in tasks)
    heads += "<th>published</th>" if published else ""
    rows = ""
    for task in tasks:
        cells = "".join(
            f'<td class="number">{_figure(task.top1.get(way, ()))}</td>' for way in ways
        )
        if published:
            known = ", ".join(f"{text_of(who)} {v:.1%}" for who, v in task.published.items())
            cells += f"<td>{known}</td>"
        rows += f"<tr><td>{text_of(task.name)}</td>{cells}</tr>"
    return (
        f'<div class="wide"><table><thead><tr><th>Task</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _figure(values: Sequence[float]) -> str:
    if not values:
        return "\u2013"
    spread = f" \u00b1 {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}%{seeds}"
