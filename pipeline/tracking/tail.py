"""What a spool says at its end, without reading the whole of it: the newest points and tags.

A spool of a long training has hundreds of megabytes; this looks for the lines that matter from
the end on, so that a question is answered in milliseconds. Nothing here writes.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pipeline.tracking import events
from pipeline.tracking.events import Event
from pipeline.tracking.position import Position

NUM_POINTS = 200
"""The rate is that of so many points of the newest attempt."""


@dataclass(frozen=True)
class Tail:
    """The end of a spool; `step` and the values are of the newest point, -1 and none without."""

    step: int = -1
    values: dict[str, float] = field(default_factory=dict)
    last_s: float | None = None
    """When the newest point was recorded."""
    steps_s: float | None = None
    """Steps per second of the newest attempt, evaluations and checkpoints included."""
    images_s: float | None = None
    """Images per second of training, the median of steps."""
    scored_step: int = -1
    scores: dict[str, float] = field(default_factory=dict)
    best: tuple[float, int] | None = None
    """The highest top-1 and its step."""
    tags: dict[str, str] = field(default_factory=dict)
    unsent: int = 0


def read_tail(folder: Path) -> Tail | None:
    """Return the end of the spool in `folder`; None where there is none.

    Raises:
        OSError: it cannot be read.
    """
    path = folder / events.FILE
    if not path.is_file():
        return None
    if not path.stat().st_size:
        return Tail()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Spool(data).tail(Position.load(folder).offset)


class _Spool:
    """The bytes of a spool, and where it was rewound."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._begun: list[tuple[int, int]] = []
        self._begun = [(event.end, event.writer) for event in self._all("attempt")]
        self._rewinds = [(event.end, event.values["step"]) for event in self._all("rewind")]

    def tail(self, sent: int) -> Tail:
        points = list(_first(NUM_POINTS, self._points(b'"train/loss"')))
        scored = list(self._points(b'"eval/top1"'))
        score = scored[0] if scored else None
        newest = points[0] if points else None
        return Tail(
            step=newest.values["step"] if newest else -1,
            values=_values(newest),
            last_s=newest.time_ms / 1000 if newest else None,
            steps_s=_steps_s(own := self._own(points)),
            images_s=_images_s(own),
            scored_step=score.values["step"] if score else -1,
            scores={k: v for k, v in _values(score).items() if k.startswith("eval/")},
            best=max(((_values(e)["eval/top1"], e.values["step"]) for e in scored), default=None),
            tags={k: v for event in self._all("tags") for k, v in event.values.items()},
            unsent=self._data[sent:].count(b"\n") - self._num_void(sent),
        )

    def _own(self, points: list[Event]) -> list[Event]:
        """Return those of `points` that the newest attempt made."""
        begun = max((end for end, _ in self._begun), default=0)
        begun = max(begun, *(end for end, _ in self._rewinds), 0) if self._rewinds else begun
        return [event for event in points if event.end > begun]

    def _points(self, word: bytes) -> Iterator[Event]:
        """Yield the metrics that hold `word`, newest first, without those that a rewind voids."""
        at = self._data.rfind(b"\n") + 1  # behind it a line may be half-written
        while (at := self._data.rfind(word, 0, at)) >= 0:
            start = self._data.rfind(b"\n", 0, at) + 1
            event = self._event(start)
            if event is not None and event.kind == "metrics":
                step = event.values["step"]
                if all(end < event.end or to >= step for end, to in self._rewinds):
                    yield event
            at = start

    def _all(self, kind: str) -> Iterator[Event]:
        """Yield the events of a kind of which there are few, oldest first."""
        word, at = f'"k":"{kind}"'.encode(), 0
        while (at := self._data.find(word, at)) >= 0:
            event = self._event(self._data.rfind(b"\n", 0, at) + 1)
            if event is not None and event.kind == kind:
                yield event
            at += len(word)

    def _event(self, start: int) -> Event | None:
        end = self._data.find(b"\n", start)
        event = events.parse(self._data[start:end], end + 1) if end >= 0 else None
        if event is None or not _is_sound(event) or self._is_void(event):
            return None
        return event

    def _is_void(self, event: Event) -> bool:
        return any(end <= event.end and writer > event.writer for end, writer in self._begun)

    def _num_void(self, start: int) -> int:
        """Count the lines from byte `start` on that writers before the newest one added."""
        end, newest = max(self._begun, key=lambda attempt: attempt[1], default=(0, 0))
        late = self._data[max(start, end) :]
        older = {writer for _, writer in self._begun if 0 < writer < newest}
        return sum(late.count(b'{"w":%d,' % writer) for writer in older)


def _is_sound(event: Event) -> bool:
    """Return whether what is used of an event is there."""
    if event.kind not in ("metrics", "rewind"):
        return True
    is_step = isinstance(event.values.get("step"), int)
    return is_step and isinstance(event.values.get("values", {}), dict)


def _first(count: int, items: Iterator[Event]) -> Iterator[Event]:
    for _, item in zip(range(count), items, strict=False):
        yield item


def _values(event: Event | None) -> dict[str, float]:
    return {k: float(v) for k, v in event.values["values"].items()} if event else {}


def _steps_s(points: list[Event]) -> float | None:
    if len(points) < 2:
        return None
    seconds = (points[0].time_ms - points[-1].time_ms) / 1000
    steps = points[0].values["step"] - points[-1].values["step"]
    return steps / seconds if seconds > 0 and steps > 0 else None


def _images_s(points: list[Event]) -> float | None:
    rates = [values.get("speed/images_per_s") for values in map(_values, points)]
    known = [rate for rate in rates if rate is not None]
    return median(known) if known else None
