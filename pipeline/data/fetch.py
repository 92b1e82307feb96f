"""Brings one file from a source to this node's disk: whole and verified, or not at all.

It grows as a part beside its place and gets its name once its size and sha256 are right, so a file
with its name can be trusted. A part that a killed process left is gone on with, and digested again
from its first byte. A connection that breaks is taken up where it broke, after growing pauses. The
kernel's lock on a part keeps processes apart, and goes with the process that held it.
"""

import errno
import fcntl
import hashlib
import io
import os
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.data.places import PlacesSpec, ShardGone
from pipeline.data.remote import CHUNK_BYTES, Dropped, Source
from pipeline.run.files import sync_folder
from pipeline.spec import Failure

BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
WRONG_CONTENTS = 2
"""Tries that may end with other bytes than expected: a proxy or a writer may stand in between."""
TRICKLE_BYTES = 64 << 10
"""A connection that gives less within `timeout_s` counts as broken."""
PART = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
_OTHER = "the source has another file than the manifest: it was changed, or a proxy is in between"
_RANDOM = random.Random()  # for pauses only; the global one belongs to others


class Expected(NamedTuple):
    """What is known of a file before it comes: size (bytes), sha256 and most bytes it may have.

    Without `sha256` the caller has to find out whether it is whole and right.
    """

    size: int | None
    sha256: str | None
    most: int


def fetch_file(
    source: Source,
    file: str,
    target: Path,
    expected: Expected,
    spec: PlacesSpec,
    check: bool = False,
) -> None:
    """Bring `file` to `target` unless it is there; processes that want the same wait for one.

    With `check`, what is there is digested, and gives way to the right file if it is another one.

    Raises:
        ShardGone: the source has no such file, or another one.
        Failure: the source does not answer, or the disk does not take the file.
    """
    is_there = partial(_has_digest, expected.sha256) if check else Path.exists
    if is_there(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = lock_part(target.with_name(target.name + PART), wait=True)
    assert part is not None
    with unlocking(part):
        if is_there(target):
            Path(part.name).unlink(missing_ok=True)
        else:
            fetch(source, file, part, target, expected, spec)


def fetch(
    source: Source,
    file: str,
    part: io.FileIO,
    target: Path,
    expected: Expected,
    spec: PlacesSpec,
) -> None:
    """Fill `part`, which is locked and may hold a beginning, and make it `target`.

    Raises:
        ShardGone, Failure: as `fetch_file` does.
    """
    growing = _Growing(part, expected)
    failed = wrong = 0
    while True:
        reached = growing.reached
        try:
            _pull(source, file, growing, spec.timeout_s)
            growing.land(target)
            return
        except _WrongContent as error:
            growing.clear()
            wrong += 1
            if wrong == WRONG_CONTENTS:
                raise ShardGone(f"{source.name(file)}: {error}") from None
        except Dropped as error:
            failed = 0 if growing.reached >= reached + CHUNK_BYTES else failed + 1
            if failed > spec.retries:
                raise _given_up(source.name(file), error, failed, growing) from None
            if error.anew:
                growing.clear()
        time.sleep(pause_s(max(failed, 1)))


def pause_s(failed: int) -> float:
    """Return how long to wait after so many failed tries: twice as long each time, about."""
    return min(BACKOFF_S * 2 ** (failed - 1), MAX_BACKOFF_S) * _RANDOM.uniform(0.5, 1.5)


def lock_part(path: Path, wait: bool) -> io.FileIO | None:
    """Open and lock a part, made where there is none; None where another has it and not `wait`."""
    while True:
        part = io.FileIO(path, "a+")
        try:
            fcntl.flock(part, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            part.close()
            return None
        if is_at(part, path):
            return part
        part.close()  # it got its name or was thrown away while we waited


def is_at(file: io.FileIO, path: Path) -> bool:
    """Say whether `path` still names this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def unlocking(file: io.FileIO) -> Iterator[None]:
    """Close a locked file at the end; unlocked first, as a forked process may have inherited it."""
    try:
        yield
    finally:
        unlock(file)


def unlock(file: io.FileIO) -> None:
    """Unlock and close a file."""
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


class _WrongContent(Exception):
    """What came is not the file that was expected."""


class _TooShort(Dropped):
    """What came ends, properly, before the file does."""


class _Growing:
    """A part and what is known of its bytes so far."""

    def __init__(self, part: io.FileIO, expected: Expected) -> None:
        self.expected, self.size = expected, 0
        self.reached = 0
        """The largest size it ever had: what counts as progress."""
        self._part, self._sha256 = part, hashlib.sha256()
        self._take_up()

    def append(self, chunk: bytes) -> None:
        if self.size == 0 and chunk[:64].lstrip().lower().startswith(_PAGES):
            raise _WrongContent(
                f"a web page came instead, it begins with {chunk[:60]!r}: the URL is wrong, or "
                "a proxy or a login is in between"
            )
        if self.size + len(chunk) > self.expected.most:
            most = self.expected.most
            raise _WrongContent(f"there are more bytes than the {most:,} expected; {_OTHER}")
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self._part.write(rest) or 0 :]
        except OSError as error:
            raise self._not_taken(error) from None
        self._sha256.update(chunk)
        self.size += len(chunk)
        self.reached = max(self.reached, self.size)

    def clear(self) -> None:
        self._part.truncate(0)
        self.size, self._sha256 = 0, hashlib.sha256()

    def land(self, target: Path) -> None:
        """Give the part its name, if it is whole and right."""
        size = self.expected.size
        if size is not None and self.size < size:
            raise _TooShort(f"the answer ends after {self.size:,} of {size:,} bytes")
        sha256 = self.expected.sha256
        if sha256 is not None and self._sha256.hexdigest() != sha256:
            raise _WrongContent(f"its sha256 differs from the manifest's; {_OTHER}")
        try:
            os.fsync(self._part.fileno())
            os.replace(self._part.name, target)
            sync_folder(target.parent)
        except OSError as error:
            raise self._not_taken(error) from None

    def _take_up(self) -> None:
        """Digest what an earlier process left."""
        if os.fstat(self._part.fileno()).st_size > self.expected.most:
            self.clear()
        self._part.seek(0)
        try:
            while chunk := self._part.read(CHUNK_BYTES):
                self._sha256.update(chunk)
                self.size += len(chunk)
        except OSError:
            self.clear()
        self.reached = self.size

    def _not_taken(self, error: OSError) -> Failure:
        full = "make room there, or set data.shards.max_gb to what the disk can hold"
        remedy = full if error.errno in _FULL else "check the disk and who may write there"
        return Failure(f"{self._part.name}: {error.strerror}; {remedy}")


def _has_digest(sha256: str | None, path: Path) -> bool:
    """Say whether a file is there and has this digest."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def _pull(source: Source, file: str, growing: _Growing, timeout_s: float) -> None:
    """Append what one try gives; returns when the source says that the file is at its end."""
    if growing.size == growing.expected.size:
        return
    first, chunks = source.chunks(file, growing.size)
    with closing(chunks):
        if first != growing.size:
            growing.clear()
        since, size = time.monotonic(), growing.size
        for chunk in chunks:
            growing.append(chunk)
            if time.monotonic() - since > timeout_s:
                if growing.size - size < TRICKLE_BYTES:
                    raise Dropped(f"only {growing.size - size} bytes came in {timeout_s:g} s")
                since, size = time.monotonic(), growing.size


def _given_up(name: str, error: Dropped, failed: int, growing: _Growing) -> Failure:
    text = f"{name}: {error} (tries without progress: {failed})"
    if error.anew or isinstance(error, _TooShort):
        return ShardGone(f"{text}; {_OTHER}")
    came = f"{growing.size:,} bytes came and are kept"
    return Failure(
        f"{text}; {came}; see whether the source is up and `data.path` names it, then run the job "
        "again"
    )
