"""Everything that a run's folder and SLURM say of a run, read without torch and without writing.

Whatever is missing or damaged becomes a line in `problems`; nothing here raises for it.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from launch.cluster import NoAnswer, job_facts
from launch.ledger import Attempt, Ledger
from pipeline.run.beats import Beat, late, read_beats
from pipeline.run.files import read_json
from pipeline.run.folder import Outcome, RunFolder
from pipeline.run.hang import hang_text
from pipeline.run.lease import Holder, holder
from pipeline.run.pace import PaceTable, read_pace
from pipeline.tracking.tail import Tail, read_tail

SLURM_S = 3.0
"""A person waits for the answer; what a busy controller would say can be asked again."""

SLOW_S = 10.0
"""A beat may be on its way for as long: file systems show a file to other hosts late."""
"""A rank is silent after this, or after so many of its intervals (5 s, or world/50 s)."""

FINAL = ("done", "misuse")
"""Ends of an attempt after which nothing comes by itself."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Checkpoint:
    """The newest committed checkpoint; `state` is its state.json."""

    step: int
    age_s: float
    state: dict[str, Any]


@dataclass
class Facts:
    """What is known of a run at `now_s`."""

    folder: Path
    now_s: float
    attempts: list[Attempt] = field(default_factory=list)
    outcome: Outcome | None = None
    """Of the newest attempt, or of one without a supervisor."""
    lease: Holder | None = None
    beats: list[Beat] = field(default_factory=list)
    late: Beat | None = None
    """The rank to blame where something hangs."""
    hang: str = ""
    """The watchdog's report on the newest attempt."""
    job: dict[str, str] | None = None
    """SLURM's facts of the newest attempt's job."""
    supervisor_lives: bool | None = None
    """None where it cannot be seen from here."""
    tail: Tail | None = None
    checkpoint: Checkpoint | None = None
    pace: PaceTable | None = None
    tracking: dict[str, Any] = field(default_factory=dict)
    disk_bytes: int = 0
    free_bytes: int = 0
    logs: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def alone(self) -> bool:
        """Whether the newest process was started without a supervisor."""
        last, lease = self.last, self.lease
        if last is None or lease is None or last.ended_s is None:
            return last is None
        return lease.lives and lease.taken_s > last.ended_s

    @property
    def silent(self) -> list[Beat]:
        """The ranks that gave no sign of life for too long, longest first."""
        old = [b for b in self.beats if b.is_silent(self.now_s, max(b.every_s, SLOW_S))]
        return sorted(old, key=lambda beat: beat.beat_s)


def read_facts(path: Path) -> Facts:
    """Look at the run in folder `path`."""
    run, now_s = RunFolder(path), time.time()
    facts = Facts(path, now_s)
    read = _Reader(facts.problems)
    facts.attempts = read.sound("attempts/ledger.jsonl", Ledger(run).attempts)
    facts.lease = read("lease.json", lambda: holder(run.lease), None)
    number, since_s = _attempt(facts)
    attempt = f"attempts/attempt-{number:04d}"
    facts.outcome = read(f"{attempt}.json", lambda: _outcome(run, number, since_s), None)
    beats = read.sound(f"{attempt}/beats", lambda: read_beats(run, number))
    facts.beats = [beat for beat in beats if beat.beat_s >= since_s]
    facts.late = read(f"{attempt}/beats", lambda: late(facts.beats, now_s), None)
    facts.hang = read(f"{attempt}/hang.json", lambda: hang_text(run, number, since_s), "")
    facts.pace = read(f"{attempt}/pace.json", lambda: read_pace(run, number), None)
    facts.tail = read("spool/events.jsonl", lambda: read_tail(run.spool), None)
    facts.checkpoint = read("checkpoints", lambda: _checkpoint(run, now_s), None)
    target = read("spool/mlflow.json", lambda: read_json(run.spool / "mlflow.json"), None)
    facts.tracking = target if isinstance(target, dict) else {}
    if facts.last is not None and facts.last.status not in FINAL:
        facts.supervisor_lives = read("job", lambda: _supervisor(facts), None)
    facts.disk_bytes = _size(path)
    facts.free_bytes = read("disk", lambda: shutil.disk_usage(path).free, 0)
    facts.logs = _logs(facts, path / attempt)
    _note_missing(facts)
    return facts


@dataclass(frozen=True)
class _Reader:
    """Reads one thing and notes where that fails."""

    problems: list[str]

    def __call__(self, what: str, read: Callable[[], Found], without: Found) -> Found:
        try:
            return read()
        except NoAnswer as error:
            self.problems.append(f"SLURM's answer: {str(error).partition(chr(10))[0]}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            self.problems.append(f"{what} cannot be used: {type(error).__name__}: {error}")
        return without

    def sound(self, what: str, read: Callable[[], list[Found]]) -> list[Found]:
        """Read dataclasses, and leave out those whose fields are of another type than they say."""
        found = self(what, read, [])
        good = [item for item in found if _is_sound(item)]
        if len(good) < len(found):
            self.problems.append(f"{what}: {len(found) - len(good)} of {len(found)} are damaged")
        return good


def _is_sound(item: Any) -> bool:
    """Return whether each field holds what its type says (JSON may give 2 for 2.0)."""
    kinds: dict[str, Any] = {one.name: one.type for one in fields(item)}
    return all(
        isinstance(getattr(item, name), kind | int if "float" in str(kind) else kind)
        for name, kind in kinds.items()
    )


def _attempt(facts: Facts) -> tuple[int, float]:
    """Return the number of the newest attempt, and since when its files count.

    Without a supervisor each try has number 0, and finds what those before it left.
    """
    if facts.last is not None and not facts.alone:
        return facts.last.number, 0.0
    return 0, facts.lease.taken_s if facts.lease is not None else 0.0


def _outcome(run: RunFolder, attempt: int, since_s: float) -> Outcome | None:
    values = read_json(run.outcome_file(attempt))
    old = isinstance(values, dict) and float(values.get("time_s", since_s)) < since_s
    return None if old else run.read_outcome(attempt)


def _checkpoint(run: RunFolder, now_s: float) -> Checkpoint | None:
    step = run.latest_step()
    if step < 0:
        return None
    folder = run.checkpoints / f"step-{step:09d}"
    state = read_json(folder / "state.json")
    age_s = now_s - (run.checkpoints / "LATEST").stat().st_mtime
    lists = ("bad_steps", "windows")
    if not isinstance(state, dict) or not all(isinstance(state.get(n, []), list) for n in lists):
        state = {}
    return Checkpoint(step, age_s, state)


def _supervisor(facts: Facts) -> bool | None:
    """Return whether the newest attempt's supervisor is there; asks SLURM for its job.

    Raises:
        NoAnswer: SLURM does not tell.
    """
    assert facts.last is not None
    job = facts.last.job
    if job.replace("_", "").isdigit():
        if shutil.which("scontrol") is None:
            return None
        try:
            facts.job = job_facts(job, SLURM_S)
        except NoAnswer as error:
            if "Invalid job id" in str(error):
                return False
            raise
        return facts.job["JobState"] in ("RUNNING", "COMPLETING", "SUSPENDED")
    host, _, rest = job.rpartition("-")[0].rpartition("-")
    if host != socket.gethostname() or not rest.isdigit():
        return None
    command = Path(f"/proc/{rest}/cmdline")
    return command.exists() and b"launch" in command.read_bytes()


def _size(path: Path) -> int:
    """Return the bytes on disk below `path`; files may go away meanwhile."""
    total = 0
    for base, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(base) / name).lstat().st_blocks * 512
            except OSError:
                continue
    return total


def _logs(facts: Facts, attempt: Path) -> list[str]:
    """Return where to read on: the job's log, stacks of a hang, the sender's log."""
    found = []
    last = facts.last
    if facts.job and (log := facts.job.get("StdOut")):
        found.append(log)
    elif last is not None and last.job.isdigit():
        name = facts.folder.name
        places = [Path.cwd() / f"{name}-{last.job}.log", Path.cwd() / f"slurm-{last.job}.out"]
        found += [str(path) for path in places if path.is_file()]
        found += [] if found else [f"{name}-{last.job}.log, where the job was submitted"]
    elif last is not None:
        found.append(f"the terminal of `python -m launch local` on {last.host}")
    for path in (attempt / "stacks", facts.folder / "spool" / "sender.log"):
        if path.is_dir() or (path.is_file() and path.stat().st_size):
            found.append(str(path))
    return found


def _note_missing(facts: Facts) -> None:
    """Say what a run that has begun should have and has not."""
    begun = facts.last is not None or facts.lease is not None
    wanted = {"recipe.yaml": begun, "attempts/ledger.jsonl": begun, "spool/events.jsonl": begun,
              "checkpoints/LATEST": _has_checkpoints(facts.folder)}  # fmt: skip
    for name, needed in wanted.items():
        if needed and not (facts.folder / name).exists():
            facts.problems.append(f"{name} is missing")
    checkpoint = facts.checkpoint
    if checkpoint is not None and not checkpoint.state:
        name = f"checkpoints/step-{checkpoint.step:09d}/state.json"
        facts.problems.append(f"{name} is missing or damaged, though LATEST names it")


def _has_checkpoints(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("step-*[0-9]"))
