"""Reads what a run left in its folder; whatever is missing or damaged is left out of the page.

evaluation.json is {"step", "num_images", "top1", "top5", "loss", "classes": [name, ...],
"confusion": [[count, ...], ...] or null, "samples": [{"id", "label", "predicted",
"probability"}, ...]}; registered.json is {"name", "version", "uri", "digest", "parent" or
"lineage": [uri, ...]}; transfer.json is {"suite", "model", "tasks": [{"task", "top1": {way:
[fraction of each seed]}, "published": {who: value}} or {"task", "missing": why}]}.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.report.facts import (
    Evaluation,
    Registered,
    RunReport,
    Sample,
    Series,
    StageRow,
    TransferReport,
    TransferTask,
)
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse, load
from pipeline.tracking.events import history, read_events

STAGE_SETTINGS = {
    "randaugment": "RandAugment",
    "mixup": "Mixup",
    "cutmix": "CutMix",
    "dropout": "Dropout",
}
ImageOf = Callable[[int], bytes | None]


def read_run(folder: RunFolder, image_of: ImageOf | None = None) -> RunReport:
    """Read one run; `image_of` gives the bytes of an evaluated image by its sample id.

    Raises:
        Misuse: there is no such folder.
    """
    if not folder.path.is_dir():
        raise Misuse(f"{folder.path}: no such run folder")
    series = {
        key: [(p.step, p.value) for p in points] for key, points in history(folder.spool).items()
    }
    seconds, num_attempts, tags = _from_events(folder)
    return RunReport(
        name=folder.path.resolve().name,
        series=series,
        stages=_stages(series),
        details=_details(folder, tags, series),
        seconds=seconds,
        num_attempts=num_attempts,
        evaluation=_evaluation(folder, image_of),
        registered=_registered(folder),
        plan_text=_text(folder.path / "plan.txt"),
    )


def read_transfer(path: Path) -> TransferReport:
    """Read the result of a transfer job.

    Raises:
        Misuse: there is no such file, or it is something else.
    """
    values = _json(path)
    try:
        tasks = [
            TransferTask(
                name=str(task["task"]),
                top1={str(w): [float(v) for v in vs] for w, vs in task.get("top1", {}).items()},
                published={str(w): _fraction(v) for w, v in task.get("published", {}).items()},
                missing=str(task.get("missing", "")),
            )
            for task in values["tasks"]
        ]
        return TransferReport(str(values["suite"]), str(values["model"]), tasks)
    except (TypeError, KeyError, ValueError, AttributeError):
        raise Misuse(f"{path}: is no transfer.json of `python -m pipeline transfer`") from None


def _fraction(value: Any) -> float:
    """Published figures come as 0.987 or as 98.7 percent."""
    number = float(value)
    return number / 100 if number > 1 else number


def _from_events(folder: RunFolder) -> tuple[float | None, int, dict[str, str]]:
    """Return the seconds in which an attempt ran, how many attempts there were, and the tags."""
    tags: dict[str, str] = {}
    spans: list[list[int]] = []
    for event in read_events(folder.spool):
        if event.kind == "attempt":
            spans.append([event.time_ms, event.time_ms])
        elif event.kind == "tags":
            tags |= {key: str(value) for key, value in event.values.items()}
        if spans:
            spans[-1][1] = event.time_ms
    seconds = sum(end - start for start, end in spans) / 1000 if spans else None
    return seconds, len(spans), tags


def _stages(series: Mapping[str, Series]) -> list[StageRow]:
    """Find the stages in the recorded points, so with the resolution of `tracking.every_steps`."""
    px_at = dict(series.get("stage/px", ()))
    settings_at = {
        title: dict(series.get(f"stage/{name}", ())) for name, title in STAGE_SETTINGS.items()
    }
    rows: list[StageRow] = []
    last = 0
    for step, value in series.get("stage/index", ()):
        if not math.isfinite(value):
            continue
        if not rows or rows[-1].index != int(value):
            settings = {t: f"{at[step]:.3g}" for t, at in settings_at.items() if step in at}
            rows.append(StageRow(int(value), last, step, int(px_at.get(step, 0)), settings))
        last = step
        rows[-1] = replace(rows[-1], end=step)
    return rows


def _details(
    folder: RunFolder, tags: Mapping[str, str], series: Mapping[str, Series]
) -> dict[str, str]:
    try:
        recipe = load(folder.recipe)
    except Misuse:
        recipe = {}
    speed = [v for _, v in series.get("speed/images_per_s", ()) if math.isfinite(v)]
    epochs = series.get("train/epoch", ())
    found = {
        "Model": _inside(recipe, "model", "name"),
        "Recipe": _inside(recipe, "variant"),
        "Data": _inside(recipe, "data", "name") or _inside(recipe, "data", "path"),
        "Started from": _inside(recipe, "init", "from"),
        "Strategy": _inside(recipe, "strategy", "kind"),
        "Ranks": tags.get("world", ""),
        "Precision": _inside(recipe, "compute", "precision"),
        "Global batch": _inside(recipe, "batch", "global_size"),
        "Seed": _inside(recipe, "seed"),
        "Epochs": f"{epochs[-1][1]:.4g}" if epochs else "",
        "Images per second": f"{statistics.median(speed):,.0f} (median)" if speed else "",
        "Commit": tags.get("commit", "")[:12],
        "Data digest": tags.get("data.digest", "")[:16],
    }
    return {name: text for name, text in found.items() if text}


def _inside(values: Any, *path: str) -> str:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return "" if values is None else str(values)


def _evaluation(folder: RunFolder, image_of: ImageOf | None) -> Evaluation | None:
    values = _json(folder.evaluation)
    try:
        samples = [
            Sample(
                int(s["id"]),
                int(s["label"]),
                int(s["predicted"]),
                float(s["probability"]),
                _image(image_of, int(s["id"])),
            )
            for s in values.get("samples") or ()
        ]
        return Evaluation(
            step=int(values["step"]),
            num_images=int(values["num_images"]),
            top1=float(values["top1"]),
            top5=_optional(values.get("top5")),
            loss=_optional(values.get("loss")),
            classes=[str(name) for name in values.get("classes") or ()],
            confusion=_matrix(values.get("confusion")),
            samples=samples,
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _image(image_of: ImageOf | None, sample: int) -> bytes | None:
    try:
        return image_of(sample) if image_of else None
    except Exception:  # shards that moved or broke since must not cost the page
        return None


def _json(path: Path) -> dict[str, Any]:
    values = read_json(path)
    return values if isinstance(values, dict) else {}


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _matrix(values: Any) -> list[list[int]] | None:
    """Return the confusion counts where they form a square, else None."""
    if not values:
        return None
    rows = [[int(count) for count in row] for row in values]
    return rows if all(len(row) == len(rows) for row in rows) else None


def _registered(folder: RunFolder) -> Registered | None:
    values = _json(folder.path / "registered.json")
    try:
        lineage = values.get("lineage") or [values.get("parent")]
        return Registered(
            name=str(values["name"]),
            version=int(values["version"]),
            uri=str(values["uri"]),
            digest=str(values["digest"]),
            lineage=[str(uri) for uri in lineage if uri],
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return ""
