"""One screen about a run, and the same as values for programs."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from textwrap import shorten
from typing import Any

from launch.ledger import Attempt
from launch.run_facts import Facts
from launch.run_state import Judged, State
from pipeline.run.clock import duration
from pipeline.run.pace import slowest

MAX_FAILURES, MAX_RANKS = 5, 8
GOOD_ENDS = ("done", "saved")
LABEL_CHARACTERS, LINE_CHARACTERS = 12, 160


def screen(facts: Facts, judged: Judged) -> str:
    """Return the lines about a run."""
    why = f": {judged.why}" if judged.why else ""
    lines = [f"{facts.folder.name}  {judged.state.value.upper()}{why}"]
    for label, text in _rows(facts, judged):
        lines.append(f"  {label:<{LABEL_CHARACTERS}}{text}")
    return "\n".join(lines)


def values(facts: Facts, judged: Judged) -> dict[str, Any]:
    """Return everything that is known as JSON can hold it."""
    return _plain(
        {
            "name": facts.folder.name,
            "state": judged.state.value,
            "why": judged.why,
            **_progress(facts, judged),
            "failures": [_failure(attempt) for attempt in failures(facts)],
            "silent": [beat.rank for beat in facts.silent],
            **asdict(facts),
            "pace": facts.pace.as_values() if facts.pace else None,
        }
    )


def failures(facts: Facts) -> list[Attempt]:
    """Return the attempts that were not meant to end as they did, newest first."""
    past = [attempt for attempt in facts.attempts if attempt.ended_s is not None]
    cut = [attempt for attempt in facts.attempts[:-1] if attempt.ended_s is None]
    bad = [attempt for attempt in past if attempt.status not in GOOD_ENDS]
    return sorted(bad + cut, key=lambda attempt: -attempt.number)


def _progress(facts: Facts, judged: Judged) -> dict[str, Any]:
    """Return step, total, stage and what is left, None where it is not known."""
    tail = facts.tail
    tags = tail.tags if tail else {}
    total = int(tags["plan.steps"]) if tags.get("plan.steps", "").isdigit() else None
    checkpoint = facts.checkpoint.step if facts.checkpoint else 0
    begun_s = facts.last.started_s if facts.last else 0.0
    goes = judged.state in (State.RUNNING, State.HUNG)
    own = tail is not None and goes and (tail.last_s or 0.0) >= begun_s
    step = tail.step if tail and own else checkpoint  # later steps will be computed again
    rate = tail.steps_s if tail and own and judged.state is State.RUNNING else None
    left_s = (total - step) / rate if total and rate else None
    return {"step": step, "total_steps": total, "steps_s": rate, "left_s": left_s}


def _rows(facts: Facts, judged: Judged) -> Iterator[tuple[str, str]]:
    yield from _attempt_row(facts)
    yield from _progress_rows(facts, judged)
    yield from _checkpoint_rows(facts)
    yield from _failure_rows(facts)
    if judged.state in (State.RUNNING, State.HUNG):
        yield from _rank_rows(facts)
    yield from _loss_rows(facts)
    free = f", {_bytes(facts.free_bytes)} free" if facts.free_bytes else ""
    yield "disk", f"{_bytes(facts.disk_bytes)} in {facts.folder}{free}"
    yield from _tracking_row(facts)
    for number, log in enumerate(facts.logs):
        yield ("" if number else "logs"), log
    for number, problem in enumerate(facts.problems):
        yield ("" if number else "missing"), problem


def _attempt_row(facts: Facts) -> Iterator[tuple[str, str]]:
    last = facts.last
    if last is None:
        return
    kind = "job" if last.job.isdigit() else "local job"
    job = facts.job or {}
    limit = f", limit {job['TimeLimit']}" if job.get("TimeLimit") else ""
    when = f"begun {duration(facts.now_s - last.started_s)} ago"
    if last.ended_s is not None:
        when = f"{last.status} {duration(facts.now_s - last.ended_s)} ago, "
        when += f"after {duration(last.ended_s - last.started_s)}"
    yield "attempt", f"{last.number}, {kind} {last.job} on {last.host}, {when}{limit}"


def _progress_rows(facts: Facts, judged: Judged) -> Iterator[tuple[str, str]]:
    tail, at = facts.tail, _progress(facts, judged)
    total = at["total_steps"]
    of = f" of {total:,} ({at['step'] / total:.1%})" if total else ", total not known"
    stage = ""
    if tail and "stage/index" in tail.values:
        stages = tail.tags.get("plan.stages", "?")
        px = f"{tail.values.get('stage/px', 0):.0f} px"
        stage = f", stage {tail.values['stage/index'] + 1:.0f} of {stages}, {px}"
    yield "step", f"{at['step']:,}{of}{stage}"
    if tail and at["steps_s"]:
        images = f"{tail.images_s:,.0f} images/s, " if tail.images_s else ""
        left = f"; {duration(at['left_s'])} left" if at["left_s"] is not None else ""
        yield "rate", f"{images}{at['steps_s']:.3g} steps/s with all pauses{left}"
    if tail and tail.last_s and "train/loss" in tail.values:
        ago = duration(facts.now_s - tail.last_s)
        yield "loss", f"{tail.values['train/loss']:.4f} after step {tail.step:,}, {ago} ago"


def _checkpoint_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    newest = facts.checkpoint
    text = "none" if newest is None else f"step {newest.step:,}, {duration(newest.age_s)} ago"
    yield "checkpoint", text
    parts = []
    if facts.tail and facts.tail.scored_step >= 0:
        scores = (f"{k.removeprefix('eval/')} {v:.4f}" for k, v in facts.tail.scores.items())
        parts.append(f"step {facts.tail.scored_step:,}: {', '.join(scores)}")
    best = facts.tail.best if facts.tail else None
    state = newest.state if newest else {}
    metric, at = state.get("best_metric"), state.get("best_step")
    if best is None and isinstance(metric, int | float) and isinstance(at, int):
        best = metric, at
    if best is not None:
        parts.append(f"best top1 {best[0]:.4f} at step {best[1]:,}")
    if parts:
        yield "evaluation", "; ".join(parts)


def _failure_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    bad = failures(facts)
    yield "failures", f"{len(bad)} in {len(facts.attempts)} attempts" if bad else "none"
    for attempt in bad[:MAX_FAILURES]:
        yield "", shorten(_failure(attempt), LINE_CHARACTERS, placeholder=" ...")
    if len(bad) > MAX_FAILURES:
        yield "", f"and {len(bad) - MAX_FAILURES} before, see attempts/ledger.jsonl"


def _failure(attempt: Attempt) -> str:
    return " ".join(attempt.describe().split())


def _rank_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.pace is not None and len(facts.pace.ranks) > 1:
        worst = facts.pace.worst
        now = worst or slowest(facts.pace.ranks)
        if now is not None:
            word = "slow" if worst else "even"
            yield (
                "pace",
                f"{word} at step {facts.pace.step:,}: the slowest is rank {now.rank} on "
                f"{now.host}, {now.ratio:.2f} times the median, by {now.phase}",
            )
    if facts.beats:
        silent = facts.silent
        heard = f"{len(facts.beats) - len(silent)} of {len(facts.beats)} ranks give signs of life"
        yield "ranks", heard
        for beat in silent[:MAX_RANKS]:
            ago = duration(facts.now_s - beat.beat_s)
            yield (
                "",
                f"rank {beat.rank:>5}  {beat.host}  {beat.section} at step {beat.step}, "
                f"last seen {ago} ago",
            )
        if len(silent) > MAX_RANKS:
            yield "", f"and {len(silent) - MAX_RANKS} more"


def _loss_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    """Tell what the training left out."""
    state = facts.checkpoint.state if facts.checkpoint else {}
    points = facts.tail.values if facts.tail else {}
    counted = state.get("bad_samples")
    samples = points.get("data/bad_samples", counted if isinstance(counted, int) else 0)
    steps = points.get("guard/bad_steps", len(state.get("bad_steps", ())))
    windows = [w for w in state.get("windows", ()) if isinstance(w, dict)]
    if not (samples or steps or windows):
        return
    skipped = ", ".join(f"after step {w.get('step')}" for w in windows)
    stretches = f", {len(windows)} stretches of data ({skipped})" if windows else ""
    yield (
        "left out",
        f"{samples:.0f} bad samples, {steps:.0f} steps without a finite loss{stretches}",
    )


def _tracking_row(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.tail is None:
        return
    waiting = facts.tail.unsent
    sent = f"{waiting:,} events wait in the spool" if waiting else "all is sent"
    run = facts.tracking.get("run_id")
    if not facts.tracking:
        yield "mlflow", f"not sent (tracking.enabled is false, or no sender yet); {sent}"
    else:
        yield "mlflow", f"run {run or 'not made yet'} at {facts.tracking.get('uri')}; {sent}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _plain(value: Any) -> Any:
    """Return `value` as strict JSON can hold it: no paths, NaN or infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path | Enum) else value
