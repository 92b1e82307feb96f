"""A folder of bounded size on a node, in which shards come and go: the least used ones go first.

All processes of the node share it and need no server for that. Each lists the folder under one
lock before it admits another shard, so the bound holds for all of them together; a shard that
somebody reads is locked and stays; a process that dies loses its locks with its life, whatever
killed it. The time of a shard's last use is its file's atime, set by hand.
"""

import fcntl
import io
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.data.fetch import PART, is_at, lock_part, unlock, unlocking
from pipeline.data.places import GB
from pipeline.spec import Failure

GUARD = ".lock"
KEPT = ".in-use"
"""In the folder of a data set: locked by jobs that count on all of its shards (staging)."""
_CROWDED_S = 0.2
_SHARD = re.compile(r"\.tar(\.([0-9]+)\.part)?$")


class Entry(NamedTuple):
    """A shard in the folder, whole or growing: bytes that it takes at the end, last use (ns)."""

    used_ns: int
    num_bytes: int
    path: Path


class ShardCache:
    """The folder, as one process sees it.

    Args:
        folder: holds a folder for each data set.
        max_bytes: most that all shards in it may take; their indexes come on top.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def admit(self, tar: Path, num_bytes: int, patience_s: float) -> io.FileIO | None:
        """Return the locked part of a shard, with room for all of it; None where another process
        brings the shard, or has brought it by now.

        Raises:
            Failure: everything else in the folder is in use, for longer than `patience_s`.
        """
        deadline = time.monotonic() + patience_s
        part = part_of(tar, num_bytes)
        while True:
            with self._guarded():
                missing = self._make_room(part, num_bytes)
                if missing <= 0:
                    return _claim(part, tar)
            if time.monotonic() >= deadline:
                raise self._crowded(tar, missing)
            time.sleep(_CROWDED_S)

    def entries(self) -> list[Entry]:
        """Return what is there, the least recently used first."""
        found = []
        for base, _, names in os.walk(self.folder):
            for name in names:
                match = _SHARD.search(name)
                entry = _entry(Path(base, name), match[2]) if match else None
                if entry is not None:
                    found.append(entry)
        return sorted(found)

    def used_bytes(self) -> int:
        """Return what all shards take, those that still grow in full."""
        return sum(entry.num_bytes for entry in self.entries())

    def _make_room(self, part: Path, num_bytes: int) -> int:
        """Remove what nobody uses until `part` may grow to `num_bytes`; return what is missing."""
        others = [entry for entry in self.entries() if entry.path != part]
        missing = sum(entry.num_bytes for entry in others) + num_bytes - self.max_bytes
        kept = self._kept_homes() if missing > 0 else set()
        for entry in others:
            if missing <= 0:
                break
            if self._home(entry.path) not in kept and remove_unused(entry.path):
                missing -= entry.num_bytes
        return missing

    def _kept_homes(self) -> set[Path]:
        """Return the folders of data sets that a job has asked to keep."""
        return {path.parent for path in self.folder.glob(f"*/{KEPT}") if is_locked(path)}

    def _home(self, path: Path) -> Path:
        return self.folder / path.relative_to(self.folder).parts[0]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        with unlocking(guard := io.FileIO(self.folder / GUARD, "a")):
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield

    def _crowded(self, tar: Path, missing: int) -> Failure:
        return Failure(
            f"{self.folder}: no room for {tar.name}: {missing / GB:.3g} GB are missing and all "
            f"other shards there are in use; set data.shards.max_gb (now {self.max_bytes / GB:g}) "
            "higher, or give this job a folder of its own"
        )


def part_of(tar: Path, num_bytes: int) -> Path:
    """Return where a shard grows; its name says how many bytes are admitted for it."""
    return tar.with_name(f"{tar.name}.{num_bytes}{PART}")


def hold(tar: Path, num_bytes: int) -> io.FileIO | None:
    """Open a shard so that it stays until it is unlocked; None where it is not there, whole."""
    try:
        file = io.FileIO(tar)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if is_at(file, tar) and os.fstat(file.fileno()).st_size == num_bytes:
        return file
    if is_at(file, tar):  # somebody cut it
        tar.unlink(missing_ok=True)
    unlock(file)
    return None


def touch(path: Path) -> None:
    """Note that a shard is used now: in its atime, as the mtime says when it was written."""
    with suppress(OSError):  # it has just gone, or belongs to another user
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def remove_unused(path: Path) -> bool:
    """Delete a shard or part that no process has locked; say whether that was done."""
    try:
        file = io.FileIO(path, "r+")
    except OSError:  # a part has just become a shard, or it belongs to another user
        return False
    with unlocking(file):
        if _is_used(file) or not is_at(file, path):
            return False
        path.unlink()
        return True


def is_locked(path: Path) -> bool:
    """Say whether some process has locked this file."""
    try:
        file = io.FileIO(path)
    except OSError:
        return False
    with unlocking(file):
        return _is_used(file)


def _is_used(file: io.FileIO) -> bool:
    """Lock the file for this process alone; true where another one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _claim(part: Path, tar: Path) -> io.FileIO | None:
    file = lock_part(part, wait=False)
    if file is not None and tar.exists():  # its maker has just finished
        part.unlink()
        unlock(file)
        return None
    return file


def _entry(path: Path, admitted: str | None) -> Entry | None:
    try:
        status = path.stat()
    except FileNotFoundError:  # a part may have become a shard since it was listed
        return Entry(time.time_ns(), int(admitted), path) if admitted else None
    used_ns = max(status.st_atime_ns, status.st_mtime_ns)
    return Entry(used_ns, int(admitted or status.st_size), path)
