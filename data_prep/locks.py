"""Who may write into an output folder: one build, or the elements of one array, never both.

The kernel lets go of these locks when a process dies, however it dies.
"""

import contextlib
import errno
import fcntl
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.spec import Misuse

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep every other build out of OUT, whose locks lie in `folder`.

    Raises:
        Misuse: somebody else writes there.
    """
    with _opened(folder / "lock") as handle:
        if not _try_lock(handle, fcntl.LOCK_EX):
            raise Misuse(
                f"{folder.parent}: another build writes there; wait for it, or choose another OUT"
            )
        yield


@contextlib.contextmanager
def one_of_many(folder: Path, stage: str, element: tuple[int, int]) -> Iterator[None]:
    """Be element k of K of a stage, beside the others but alone as k.

    Raises:
        Misuse: a whole build, this element, or an array of another size writes there.
    """
    number, count = element
    mine = folder / f"lock-{stage}-{number}"
    with _opened(folder / "lock") as shared, _opened(folder / f"lock-{stage}") as size:
        if not _try_lock(shared, fcntl.LOCK_SH):
            raise Misuse(f"{folder.parent}: a build writes there; wait until it is done")
        _agree(size, count, f"{folder.parent}: stage {stage}")
        with _opened(mine) as handle:
            if not _try_lock(handle, fcntl.LOCK_EX):
                raise Misuse(
                    f"{folder.parent}: element {number}/{count} of stage {stage} runs already; "
                    "wait for it, or end it"
                )
            yield


def _agree(handle: int, count: int, shown: str) -> None:
    """See to it that all elements that run at a time are of the same K; the first one writes it."""
    if _try_lock(handle, fcntl.LOCK_EX):
        os.truncate(handle, 0)
        os.pwrite(handle, str(count).encode(), 0)
    _lock(handle, fcntl.LOCK_SH)
    said = os.pread(handle, 32, 0).decode("ascii", "replace")
    if said != str(count):
        raise Misuse(f"{shown} runs in {said} elements now, not in {count}; wait for them")


def _try_lock(handle: int, kind: int) -> bool:
    try:
        _lock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(handle: int, kind: int) -> None:
    """Lock a file; where its file system has no locks, say so and go on."""
    try:
        fcntl.flock(handle, kind)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _say_no_locks()


@functools.cache
def _say_no_locks() -> None:
    print(
        "the file system of OUT has no locks: see to it that no second build writes there",
        file=sys.stderr,
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)
