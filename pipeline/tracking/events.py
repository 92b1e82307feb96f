"""The lines of a spool: what one event looks like, and reading them back.

Each line is one JSON object: writer `w`, running number `n`, kind `k`, time `t` in ms since 1970,
values `v`. Each attempt writes under a number above all before it. What an earlier writer adds
after a later one began (a job that was taken for dead and comes back) is void: no reader gives it.
Reading stops at the last whole line, so it may go on while the writer writes. JSON has no NaN or
infinity; such values travel as strings, which float() reads back.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FILE = "events.jsonl"
KINDS = frozenset(("run", "attempt", "params", "tags", "metrics", "artifact", "rewind", "finish"))


class Event(NamedTuple):
    """One line; `end` is the byte offset of the next one, `writer` 0 in a spool of old."""

    n: int
    kind: str
    time_ms: int
    values: dict[str, Any]
    end: int
    writer: int = 0


class Point(NamedTuple):
    """One value of a metric."""

    step: int
    value: float
    time_ms: int


def encode(n: int, kind: str, time_ms: int, values: dict[str, Any], writer: int = 0) -> bytes:
    """Return the line of an event, newline included."""
    body = {"w": writer, "n": n, "k": kind, "t": time_ms, "v": values}
    return (json.dumps(body, separators=(",", ":"), allow_nan=False) + "\n").encode()


def number(value: Any) -> float | str:
    """Return a number as JSON can hold it: 'nan', 'inf' and '-inf' become strings."""
    plain = float(value)
    return plain if math.isfinite(plain) else str(plain)


def read_events(folder: Path, offset: int = 0, writer: int = 0) -> Iterator[Event]:
    """Yield the whole events of the spool in `folder` from byte `offset` on.

    `writer` is the newest one before `offset`. A line that is no event (a damaged disk) or void is
    passed over.
    """
    try:
        file = open(folder / FILE, "rb")  # noqa: SIM115 - closed by the with below
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            event = parse(line, offset)
            if event is not None and event.writer >= writer:
                writer = event.writer
                yield event


def history(folder: Path) -> dict[str, list[Point]]:
    """Return each metric's points by rising step; of a step computed twice the last one counts."""
    series: dict[str, dict[int, Point]] = {}
    for event in read_events(folder):
        if event.kind == "rewind":
            step = int(event.values["step"])
            for points in series.values():
                for late in [s for s in points if s > step]:
                    del points[late]
        elif event.kind == "metrics":
            step = int(event.values["step"])
            for key, value in event.values["values"].items():
                series.setdefault(key, {})[step] = Point(step, float(value), event.time_ms)
    return {key: [points[s] for s in sorted(points)] for key, points in series.items()}


def parse(line: bytes, end: int) -> Event | None:
    """Return the event of a line that ends at byte `end`; None where it is none."""
    try:
        body = json.loads(line)
        known = int(body["n"]), body["k"], int(body["t"]), dict(body["v"])
        event = Event(*known, end, int(body.get("w", 0)))
    except (ValueError, TypeError, KeyError):
        return None
    return event if event.kind in KINDS else None
