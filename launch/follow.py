"""Follow jobs and arrays of jobs to their end: each change is a line, a failed element is named.

States come from scontrol. It forgets an ended job after some minutes (MinJobAge), so the last
answer about each element of an array is kept while the others run.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping

from launch.cluster import NoAnswer, job_records
from pipeline.run.folder import DONE, FAILED, MISUSE

LOOK_S = 2.0
SILENT_S = 600.0
"""A controller may be restarted while jobs run; longer than this it is gone."""

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE",
         "BOOT_FAIL")  # fmt: skip


def follow(ids: Mapping[str, str], look_s: float = LOOK_S) -> int:
    """Print each change of a job's state until all have ended; 0 where all completed.

    Raises:
        NoAnswer: SLURM is silent for long.
    """
    jobs = [_Followed(name, job_id) for name, job_id in ids.items()]
    heard_s = time.monotonic()
    while True:
        for job in jobs:
            if job.code is not None:
                continue
            try:
                job.look()
                heard_s = time.monotonic()
            except NoAnswer:
                if time.monotonic() - heard_s > SILENT_S:
                    raise
        if all(job.code is not None for job in jobs):
            return max((job.code or DONE for job in jobs), default=DONE)
        time.sleep(look_s)


def numbers_of(text: str) -> Iterator[int]:
    """Yield the elements that an ArrayTaskId names: `3`, or `0-2,5,8-12:2%4` while they wait."""
    for part in text.partition("%")[0].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1, int(step or 1))


class _Followed:
    """A job or an array, and what was last heard of it."""

    def __init__(self, name: str, job_id: str) -> None:
        self.code: int | None = None
        """Its exit code, once it has ended."""
        self._name, self._job_id = name, job_id
        self._heard: dict[int | None, dict[str, str]] = {}
        self._said = ""
        self._named: set[str] = set()

    def look(self) -> None:
        for facts in job_records(self._job_id):
            where = facts.get("ArrayTaskId")
            for number in numbers_of(where) if where else (None,):
                self._heard[number] = facts
        states = [_state(facts) for facts in self._heard.values()]
        # A lone job, or an array in which all are alike, is one state; else each with its count.
        line = states[0]
        if None not in self._heard:
            line = ", ".join(f"{count} {state}" for state, count in sorted(Counter(states).items()))
        self._name_failed()
        if line != self._said:
            self._say(f"{self._name} ({self._job_id}): {line}")
            self._said = line
        elif all(facts["JobState"] in FINAL for facts in self._heard.values()):
            # Seen twice: no requeue in between.
            self.code = max(_code(facts) for facts in self._heard.values())

    def _name_failed(self) -> None:
        for number, facts in self._heard.items():
            line = (
                f"{self._name}[{number}] ({self._job_id}_{number}): {_state(facts)}; "
                f"its log is {facts.get('StdOut', 'unknown')}"
            )
            if number is not None and _failed_itself(facts) and line not in self._named:
                self._named.add(line)
                self._say(line)

    def _say(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _failed_itself(facts: Mapping[str, str]) -> bool:
    good = facts["JobState"] not in FINAL or facts["JobState"] == "COMPLETED"
    return not good and facts.get("Reason") != "DependencyNeverSatisfied"


def _state(facts: Mapping[str, str]) -> str:
    state = facts["JobState"]
    if state == "PENDING":
        return f"{state} ({facts.get('Reason', '')})"
    if state == "CANCELLED" and facts.get("Reason") == "DependencyNeverSatisfied":
        return f"{state} (a job before it failed)"
    return state if state in ("RUNNING", "COMPLETED") else f"{state} exit {facts['ExitCode']}"


def _code(facts: Mapping[str, str]) -> int:
    if facts["JobState"] == "COMPLETED":
        return DONE
    return MISUSE if facts.get("ExitCode") == "2:0" else FAILED
