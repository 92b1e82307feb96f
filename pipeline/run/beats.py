"""Signs of life of the ranks of an attempt: who is where in which step, and who is late.

Each rank writes attempts/attempt-0003/beats/rank-00012.json every few seconds.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.run.files import read_json, write_json
from pipeline.run.folder import RunFolder


class Section(StrEnum):
    """What a rank is doing, in the order within a step."""

    SETUP = "setup"
    COMPILE = "compile"
    DATA = "data"
    STEP = "step"
    CHECKPOINT = "checkpoint"
    EVALUATE = "evaluate"
    FINISH = "finish"


@dataclass(frozen=True)
class Beat:
    """One sign of life; wall-clock seconds: when the section began, when this was written."""

    rank: int
    host: str
    pid: int
    section: str
    step: int
    since_s: float
    beat_s: float
    attempt: int


def write_beat(folder: RunFolder, beat: Beat) -> None:
    """Replace the rank's last sign of life."""
    path = _folder(folder, beat.attempt) / f"rank-{beat.rank:05d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(beat))


def read_beats(folder: RunFolder, attempt: int) -> list[Beat]:
    """Return the newest sign of life of each rank of `attempt`, by rank."""
    beats = []
    for path in _folder(folder, attempt).glob("rank-*.json"):
        values = read_json(path)
        if isinstance(values, dict) and set(values) == set(Beat.__dataclass_fields__):
            beats.append(Beat(**values))
    return sorted(beats, key=lambda beat: beat.rank)


def late(beats: list[Beat], now_s: float) -> Beat | None:
    """Return the rank to blame: no sign of life for longest, else least far in step and section.

    `now_s` minus the newest beat tells how long ago the ranks were last heard.
    """
    if not beats:
        return None
    order = list(Section)
    newest = max(beat.beat_s for beat in beats)
    silent = min(beats, key=lambda beat: beat.beat_s)
    if newest - silent.beat_s > 15.0 or now_s - newest > 60.0:
        return silent
    return min(beats, key=lambda beat: (beat.step, order.index(Section(beat.section))))


def _folder(folder: RunFolder, attempt: int) -> Path:
    return folder.outcome_file(attempt).with_suffix("") / "beats"
