"""One writer for each run: a lease file with a heartbeat and a fencing token.

    lease.json           who holds it: changed only as it is taken and given up, under a lock
    lease.json.beat-7    when the holder of token 7 was last alive, renewed every few seconds

Another process may take it when the heartbeat is old, when the holder was an earlier attempt of the
same job, or when the holder ran on this host and its process is gone. Each taking raises the token;
a writer checks its token before it commits, so that one that was presumed dead and comes back finds
that it may not write any more. Its late heartbeat reaches a file that nobody asks for.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.run.files import overwrite, read_json, write_json
from pipeline.run.host import start_time
from pipeline.spec import Failure

HEARTBEAT_S = 5.0
STALE_S = 60.0
GUARD_S = 10.0
"""Nobody looks at the lease for so long: one guard that stays was left by a dead process."""


class LeaseHeld(Failure):
    """Another job writes to this run, or took it over."""


class Lease:
    """The right to write to one run; renewed by a thread until `release`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = threading.Event()
        self._owner, self._taken_s = uuid4().hex, time.time()
        with _exclusive(path):
            held = read_json(path)
            if isinstance(held, dict) and not _is_free(path, held):
                raise LeaseHeld(
                    f"{path}: job {held['job'] or 'without SLURM'} (process {held['pid']} on "
                    f"{held['host']}) writes to this run; wait for it, cancel it, or choose "
                    f"another name=..."
                )
            self.token = int(held["token"]) + 1 if isinstance(held, dict) else 1
            self._write()
            for old in path.parent.glob(f"{path.name}.beat-*"):
                old.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseHeld where somebody else took the lease."""
        held, own = read_json(self._path), (self.token, self._owner)
        if not isinstance(held, dict) or (held.get("token"), held.get("owner")) != own:
            raise LeaseHeld(f"{self._path}: another job took this run over; this one must stop")

    def release(self) -> None:
        """Give the lease up; the token stays on record."""
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(LeaseHeld, OSError), _exclusive(self._path):
            self.check()
            self._write(released=True)
            _beat_file(self._path, self.token).unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            try:
                self.check()
                self._beat()
            except LeaseHeld:
                return
            except OSError:
                continue  # the next beat may be written

    def _beat(self) -> None:
        """Renew the heartbeat; a full disk must not have it look as if this holder were dead."""
        path, beat = _beat_file(self._path, self.token), {"heartbeat_s": time.time()}
        try:
            write_json(path, beat)
        except OSError:
            overwrite(path, json.dumps(beat) + "\n")

    def _write(self, released: bool = False) -> None:
        write_json(
            self._path,
            {
                "token": self.token,
                "job": os.environ.get("SLURM_JOB_ID", ""),
                "owner": self._owner,
                "taken_s": self._taken_s,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "start": start_time(os.getpid()),
                "heartbeat_s": time.time(),
                "released": released,
            },
        )


@dataclass(frozen=True)
class Holder:
    """Who holds a lease or held it last, as anybody may see it."""

    job: str
    host: str
    pid: int
    taken_s: float
    """When it was taken, by the holder's clock."""
    age_s: float
    """Since the last heartbeat."""
    lives: bool
    """Neither released nor silent for long; where this can be seen, its process is there."""


def holder(path: Path) -> Holder | None:
    """Return who holds the lease `path`; None where nobody ever did.

    Raises:
        KeyError, TypeError, ValueError: the file is damaged.
    """
    held = read_json(path)
    if held is None:
        return None
    age_s = time.time() - _alive_s(path, held)
    here = held["host"] == socket.gethostname()
    gone = here and start_time(held["pid"]) != held["start"]
    lives = not held["released"] and age_s <= STALE_S and not gone
    taken_s = float(held.get("taken_s", held["heartbeat_s"]))
    return Holder(held["job"], held["host"], int(held["pid"]), taken_s, age_s, lives)


def _beat_file(path: Path, token: int) -> Path:
    return path.with_name(f"{path.name}.beat-{token}")


def _alive_s(path: Path, held: dict[str, Any]) -> float:
    """Return when the holder was last alive, by its own clock."""
    beat = read_json(_beat_file(path, int(held["token"])))
    renewed_s = float(beat["heartbeat_s"]) if isinstance(beat, dict) else 0.0
    return max(renewed_s, float(held["heartbeat_s"]))


def _is_free(path: Path, held: dict[str, Any]) -> bool:
    if held["released"] or time.time() - _alive_s(path, held) > STALE_S:
        return True
    job = os.environ.get("SLURM_JOB_ID", "")
    if job and held["job"] == job:
        return True  # an earlier attempt of this job; the supervisor runs one at a time
    here = held["host"] == socket.gethostname()
    return here and start_time(held["pid"]) != held["start"]


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one of its name; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    return None


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time look at the lease and take it."""
    guard = path.with_name(path.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    seen, deadline = None, 0.0
    while True:
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            if (now := _identity(guard)) != seen:  # somebody else's turn
                seen, deadline = now, time.monotonic() + GUARD_S
            elif time.monotonic() > deadline:  # its maker died between these lines
                guard.unlink(missing_ok=True)
            time.sleep(0.05)
    try:
        yield
    finally:
        guard.unlink(missing_ok=True)
