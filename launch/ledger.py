"""The ledger of a run: which attempt was made by which job, when, and how far it came.

`attempts/ledger.jsonl` in the run's folder gets a line when an attempt starts and one when it
ends. Numbers are claimed by creating a file, so that they grow over restarts, requeues and jobs
and two jobs that start at once never share one. An attempt without an end was cut off together
with its supervisor.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.run.folder import RunFolder

CRASHES = ("crashed", "hung")
"""Ends that are the run's own; the step is started again in the same allocation."""


@dataclass(frozen=True)
class Attempt:
    """One attempt; steps are those of the newest committed checkpoint, -1 before the first."""

    number: int
    job: str
    restart: int
    host: str
    started_s: float
    first_step: int
    ended_s: float | None = None
    last_step: int | None = None
    status: str = ""
    """done, saved, misuse, crashed, hung, lost (a node), or stopped on a signal, without saving."""
    reason: str = ""

    def describe(self) -> str:
        """Return one line for the summary."""
        if self.ended_s is None:
            return f"attempt {self.number}: cut off, from step {max(self.first_step, 0)}"
        seconds = self.ended_s - self.started_s
        steps = f"step {max(self.first_step, 0)} to {max(self.last_step or 0, 0)}"
        reason = f": {self.reason}" if self.reason else ""
        return f"attempt {self.number}: {self.status}, {steps} in {seconds:.0f} s{reason}"


class Ledger:
    """The attempts at one run."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.path / "attempts"
        self._file = self._folder / "ledger.jsonl"

    def begin(self, job: str, restart: int, host: str, first_step: int) -> Attempt:
        """Claim the next number and note that the attempt starts.

        Raises:
            OSError: the folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        attempt = Attempt(self._claim(), job, restart, host, time.time(), first_step)
        self._append({"event": "start", **asdict(attempt)})
        return attempt

    def end(self, attempt: Attempt, status: str, last_step: int, reason: str) -> None:
        """Note how the attempt ended."""
        facts = {"ended_s": time.time(), "last_step": last_step, "status": status}
        self._append({"event": "end", "number": attempt.number, **facts, "reason": reason})

    def attempts(self, job: str | None = None) -> list[Attempt]:
        """Return the attempts of one job (or all), restarts and requeues included, oldest first."""
        found: dict[int, Attempt] = {}
        for event in self._events():
            kind, number = event.pop("event", ""), event.get("number", -1)
            if kind == "start" and job in (None, event.get("job")):
                found[number] = Attempt(**event)
            elif kind == "end" and number in found:
                found[number] = Attempt(**{**asdict(found[number]), **event})
        return [found[number] for number in sorted(found)]

    def _claim(self) -> int:
        taken = [_number(path) for path in self._folder.glob("attempt-*")]
        number = max(taken, default=-1) + 1
        while True:
            try:
                claim = self._folder / f"attempt-{number:04d}.claim"
                os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                return number
            except FileExistsError:
                number += 1

    def _append(self, event: dict[str, object]) -> None:
        line = json.dumps(event) + "\n"
        handle = os.open(self._file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        try:
            if _torn(self._file):
                line = "\n" + line
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def _events(self) -> list[dict]:
        """Read the lines that are whole; a full disk or a crash may have cut one."""
        if not self._file.is_file():
            return []
        events = []
        for line in self._file.read_text(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            events += [event] if isinstance(event, dict) else []
        return events


def _number(path: Path) -> int:
    digits = path.name.removeprefix("attempt-").partition(".")[0]
    return int(digits) if digits.isdigit() else -1


def _torn(path: Path) -> bool:
    """Return whether the last line lacks its end."""
    data = path.read_bytes()[-1:]
    return data not in (b"", b"\n")
