"""Signs of life: every rank of an attempt writes where it is, and who is late follows from that.

RUN/attempts/attempt-0003/beats/rank-00017.json    where rank 17 was some seconds ago

One small file for each rank, replaced whole by the rank alone. Nothing of it is synced to disk: a
sign of life is worth nothing after a crash of its host. Times are wall-clock seconds of the hosts,
which clusters keep equal within a fraction of a second.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.run.files import overwrite, read_json
from pipeline.run.folder import RunFolder

BEAT_EVERY_S = 5.0
LOOK_S = 0.5
"""A watchdog looks so often; a beat comes with the first look after it is due."""
BEATS_A_SECOND = 50
"""So many files are written in a second by all ranks together, at most."""
MISSED_BEATS = 3
"""A rank that missed so many beats gives no sign of life."""


class Section(StrEnum):
    """The parts of an attempt, in the order in which a step goes through them."""

    SETUP = "setup"
    COMPILE = "compile"
    DATA = "data"
    STEP = "step"
    EVALUATE = "evaluate"
    CHECKPOINT = "checkpoint"
    FINISH = "finish"


_ORDER = {section: index for index, section in enumerate(Section)}


@dataclass(frozen=True)
class Beat:
    """Where a rank is.

    `step` counts from 1: the step being made in data and step, the last one made elsewhere.
    `since_s` is when the section began, `beat_s` when this was written. `collectives` counts the
    collectives that the rank has started, -1 before it joined the others.
    """

    rank: int
    host: str
    pid: int
    section: Section
    step: int
    since_s: float
    beat_s: float
    attempt: int
    collectives: int = -1
    every_s: float = BEAT_EVERY_S
    """The next beat comes after so long."""

    @property
    def place(self) -> tuple[int, int]:
        """Return what is compared to tell which of two ranks is less far."""
        return self.step, _ORDER[self.section]

    def age_s(self, now_s: float) -> float:
        """Return how long ago the last sign of life came."""
        return max(0.0, now_s - self.beat_s)

    def is_silent(self, now_s: float, interval_s: float) -> bool:
        """Return whether the rank missed several beats."""
        return self.age_s(now_s) > MISSED_BEATS * (interval_s + LOOK_S)


def attempt_folder(folder: RunFolder, attempt: int) -> Path:
    """Return the folder of what the ranks of an attempt leave for people."""
    return folder.path / "attempts" / f"attempt-{attempt:04d}"


def beat_file(folder: RunFolder, attempt: int, rank: int) -> Path:
    """Return the file of a rank's signs of life."""
    return attempt_folder(folder, attempt) / "beats" / f"rank-{rank:05d}.json"


def beat_interval_s(every_s: float, world: int) -> float:
    """Return the seconds between two beats of a rank; longer where there are very many ranks."""
    return max(every_s, world / BEATS_A_SECOND)


def write_beat(folder: RunFolder, beat: Beat) -> None:
    """Replace the rank's file by this beat; on a full disk, overwrite what is in it.

    Raises:
        OSError: the folder cannot be written.
    """
    path = beat_file(folder, beat.attempt, beat.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(asdict(beat)) + "\n"
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        if not path.exists():
            raise
        overwrite(path, text)


def read_beats(folder: RunFolder, attempt: int) -> list[Beat]:
    """Return the newest beat of each rank of an attempt, by rank; files that are none are left."""
    paths = (attempt_folder(folder, attempt) / "beats").glob("rank-*.json")
    beats = [beat for path in paths if (beat := _parse(read_json(path))) is not None]
    return sorted(beats, key=lambda beat: beat.rank)


def late(beats: Sequence[Beat], now_s: float, every_s: float = BEAT_EVERY_S) -> Beat | None:
    """Return the rank to blame: no sign of life for longest, else least far.

    `every_s` is the run's watch.beat_every_s. None where there are no beats, or where several
    ranks are all equally far.
    """
    if not beats:
        return None
    interval_s = beat_interval_s(every_s, len(beats))
    silent = [beat for beat in beats if beat.is_silent(now_s, interval_s)]
    if silent:
        return min(silent, key=lambda beat: beat.beat_s)
    places = [(beat.place, beat.collectives) for beat in beats]
    if len(places) > 1 and len(set(places)) == 1:
        return None
    return beats[places.index(min(places))]


def _parse(values: object) -> Beat | None:
    try:
        assert isinstance(values, dict)
        return Beat(**{**values, "section": Section(values["section"])})
    except (AssertionError, KeyError, TypeError, ValueError):
        return None
