"""Puts the page together: head, figures at a glance, and a section for each run."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from pipeline.report.bars import transfer as transfer_section
from pipeline.report.confusion import confusion
from pipeline.report.curves import CLIP, charts
from pipeline.report.facts import Evaluation, Registered, RunReport, StageRow, TransferReport
from pipeline.report.samples import samples
from pipeline.report.style import STYLE
from pipeline.report.svg import text_of
from pipeline.run.clock import duration
from pipeline.run.files import write_atomically

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(
    path: Path, title: str, runs: Sequence[RunReport], transfer: TransferReport | None = None
) -> Path:
    """Write one self-contained HTML page; it loads nothing and runs no script."""
    sections = [_run(run, number) for number, run in enumerate(runs, start=1)]
    if transfer is not None:
        sections.append(
            f'<section id="transfer"><h2>Transfer: {text_of(transfer.suite)}</h2>'
            f"{transfer_section(transfer)}</section>"
        )
    today = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    clip = f'<svg class="hidden">{CLIP}</svg>'
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text_of(title)}</title><style>{STYLE}</style></head><body>{clip}<main>"
        f'<header><h1>{text_of(title)}</h1><p class="muted">Written {text_of(today)}</p>'
        f"{_contents(runs, transfer)}</header>{''.join(sections)}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def _contents(runs: Sequence[RunReport], transfer: TransferReport | None) -> str:
    links = [f'<a href="#run{i}">{text_of(run.name)}</a>' for i, run in enumerate(runs, start=1)]
    links += ['<a href="#transfer">Transfer</a>'] if transfer is not None else []
    return f"<nav>{''.join(links)}</nav>" if len(links) > 1 else ""


def _run(run: RunReport, number: int) -> str:
    parts = [f'<section id="run{number}"><h2>{text_of(run.name)}</h2>', _tiles(run)]
    drawn = charts(run)
    if drawn:
        parts.append(f'<h3>Curves</h3><div class="charts">{"".join(drawn)}</div>')
    else:
        parts.append("<p>No points were recorded for this run.</p>")
    if run.stages or run.plan_text:
        parts.append(f"<h3>Stages</h3>{_stages(run.stages)}{_plan(run.plan_text)}")
    if run.evaluation is not None:
        parts.append(_evaluation(run.evaluation))
    if run.registered is not None:
        parts.append(f"<h3>Registered model</h3>{_registered(run.registered)}")
    if run.details:
        parts.append(f"<h3>Details</h3>{_pairs(list(run.details.items()))}")
    return "".join([*parts, "</section>"])


def _tiles(run: RunReport) -> str:
    tiles: list[tuple[str, str]] = []
    top1 = [(value, step) for step, value in run.series.get("eval/top1", ())]
    final = run.evaluation.top1 if run.evaluation else (top1[-1][0] if top1 else None)
    if final is not None:
        images = f"on {run.evaluation.num_images:,} held-out images" if run.evaluation else ""
        tiles.append((f"{100 * final:.2f}%", f"top-1 {images}"))
    if top1 and final is not None and max(top1)[0] > final:
        best, step = max(top1, key=lambda item: (item[0], -item[1]))
        tiles.append((f"{100 * best:.2f}%", f"best top-1, at step {step:,}"))
    if run.steps:
        stages = f" in {len(run.stages)} stages" if len(run.stages) > 1 else ""
        tiles.append((f"{run.steps:,}", f"steps{stages}"))
    if run.seconds is not None:
        attempts = f" in {run.num_attempts} attempts" if run.num_attempts > 1 else ""
        tiles.append((duration(run.seconds), f"training time{attempts}"))
    if "Ranks" in run.details:
        strategy = run.details.get("Strategy", "")
        ranks = "rank" if run.details["Ranks"] == "1" else "ranks"
        tiles.append((run.details["Ranks"], f"{ranks}, {strategy}" if strategy else ranks))
    if run.registered is not None:
        tiles.append((f"v{run.registered.version}", f"registered as {run.registered.name}"))
    cells = "".join(
        f'<div class="tile"><b>{text_of(figure)}</b><span>{text_of(text)}</span></div>'
        for figure, text in tiles
    )
    return f'<div class="tiles">{cells}</div>' if cells else ""


def _stages(stages: Sequence[StageRow]) -> str:
    if not stages:
        return ""
    names = list(dict.fromkeys(name for stage in stages for name in stage.settings))
    heads = "".join(f'<th class="number">{text_of(name)}</th>' for name in names)
    rows = ""
    for stage in stages:
        cells = "".join(
            f'<td class="number">{text_of(stage.settings.get(name, ""))}</td>' for name in names
        )
        rows += (
            f'<tr><td>{stage.index + 1}</td><td class="number">{stage.start:,} to {stage.end:,}'
            f'</td><td class="number">{stage.px}</td>{cells}</tr>'
        )
    return (
        '<div class="wide"><table><thead><tr><th>Stage</th><th class="number">Steps</th>'
        f'<th class="number">px</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _plan(text: str) -> str:
    if not text.strip():
        return ""
    shown = f"<summary>The plan as it was printed</summary><pre>{text_of(text)}</pre>"
    return f"<details>{shown}</details>"


def _evaluation(evaluation: Evaluation) -> str:
    figures = [("Top-1", f"{100 * evaluation.top1:.2f}%")]
    if evaluation.top5 is not None and len(evaluation.classes) > 5:
        figures.append(("Top-5", f"{100 * evaluation.top5:.2f}%"))
    if evaluation.loss is not None:
        figures.append(("Loss", f"{evaluation.loss:.4f}"))
    figures.append(("Images", f"{evaluation.num_images:,}, each once"))
    parts = ["<h3>Evaluation of the averaged weights</h3>", _pairs(figures)]
    matrix = confusion(evaluation)
    if matrix:
        parts.append(f"<h3>Confusion</h3>{matrix}")
    gallery = samples(evaluation)
    if gallery:
        parts.append(f"<h3>Sample images</h3>{gallery}")
    return "".join(parts)


def _registered(version: Registered) -> str:
    pairs = [
        ("Name", f"{version.name}, version {version.version}"),
        ("Address", version.uri),
        ("sha256", version.digest),
    ]
    if version.lineage:
        pairs.append(("Came from", " \u2190 ".join(version.lineage)))
    return _pairs(pairs)


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{text_of(name)}</dt><dd>{text_of(text)}</dd>" for name, text in pairs)
    return f"<dl>{rows}</dl>"
