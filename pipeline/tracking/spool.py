"""The training side of tracking: an append-only file, and nothing else.

One write call puts one whole line into the page cache (some 10 microseconds); no network, no lock
of another process, no MLflow. A disk that is full costs events, with one warning, never the run.
The sender (sender.py) takes the lines to MLflow in its own time.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.run.folder import this_attempt
from pipeline.tracking import events
from pipeline.tracking.facts import machine

STATUSES = ("FINISHED", "FAILED", "KILLED", "SCHEDULED")
MAX_ARTIFACT_BYTES = 64 * 2**20
log = logging.getLogger(__name__)


class Spool:
    """The events of one run, `folder`/events.jsonl; one writer at a time (the run's lease).

    Opening it starts an attempt. Methods may be called from any thread.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.lost = 0  # events that the disk did not take
        self.last_step = 0  # of the newest metrics
        self._finished = False
        self._lock = threading.Lock()
        self._file = os.open(folder / events.FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._next, self._writer = self._recover()
        if self._next == 0:
            self._append("run", {"key": uuid.uuid4().hex})
        self._append("attempt", {"attempt": this_attempt(), "pid": os.getpid(), **machine()})

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings; nested ones become dotted names. Sent once; later changes are tags."""
        self._append("params", dict(_flatten(values)))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record facts about the run that may change."""
        self._append("tags", {key: str(value) for key, value in values.items()})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at `step`; the steps of one metric rise, except after `rewind`."""
        numbers = {key: events.number(value) for key, value in values.items()}
        self.last_step = int(step)
        self._append("metrics", {"step": int(step), "values": numbers})

    def artifact(self, path: Path) -> None:
        """Have a small file (up to 64 MiB) copied to MLflow; it is read when it is sent."""
        path = Path(path).absolute()
        if not path.is_file() or path.stat().st_size > MAX_ARTIFACT_BYTES:
            log.warning("%s: no file, or over 64 MiB; not sent to MLflow", path)
            return
        self._append("artifact", {"path": os.path.relpath(path, self.folder.absolute())})

    def rewind(self, step: int) -> None:
        """Say that training goes on from `step`: points after it will be computed again.

        Those not sent yet are dropped; those sent stay and their second computation is not sent,
        so that each point appears once.
        """
        self.last_step = int(step)
        self._append("rewind", {"step": int(step)})

    def finish(self, status: str) -> None:
        """Say how the attempt ended: FINISHED, FAILED, KILLED, or SCHEDULED (saved, will go on).

        It is the attempt's last event; what a thread still records afterwards is passed over.
        """
        if status not in STATUSES:
            raise ValueError(f"status '{status}': expected one of {', '.join(STATUSES)}")
        self._append("finish", {"status": status})
        self._finished = True
        self.sync()

    def sync(self) -> None:
        """Make all events durable; to be called before a checkpoint is committed."""
        try:
            os.fsync(self._file)
        except (OSError, ValueError) as error:  # a full disk; closed
            log.warning("%s: cannot be synced: %s", self.folder, error)

    def close(self) -> None:
        """Close the file; recording afterwards only counts as lost."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _append(self, kind: str, values: dict[str, Any]) -> None:
        with self._lock:
            if self._finished:
                return
            line = events.encode(
                self._next, kind, time.time_ns() // 1_000_000, values, self._writer
            )
            try:
                self._write(line)
                self._next += 1
            except OSError as error:
                self.lost += 1
                if self.lost == 1:
                    log.warning("%s: cannot be written, metrics are lost: %s", self.folder, error)

    def _write(self, line: bytes) -> None:
        if os.write(self._file, line) != len(line):  # the disk is full
            self._cut_torn_line()
            raise OSError(28, os.strerror(28))

    def _recover(self) -> tuple[int, int]:
        """Cut a torn last line away; return the numbers of the next event and of this writer."""
        self._cut_torn_line()
        last, writer = -1, 0
        for event in events.read_events(self.folder):
            last, writer = event.n, event.writer
        return last + 1, writer + 1

    def _cut_torn_line(self) -> None:
        data = (self.folder / events.FILE).read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and any(isinstance(x, Mapping) for x in value):
            flat += _flatten({str(i): x for i, x in enumerate(value)}, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", str(value)))
    return flat
