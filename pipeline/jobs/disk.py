"""A disk that does not take what a job writes: the file, the system's words and the remedy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.spec import Failure

ROOM, RIGHTS = "make room there", "check who may read and write there"
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`)",
    errno.EROFS: RIGHTS,
    errno.EACCES: RIGHTS,
}


@contextmanager
def naming_disk(place: Path) -> Iterator[None]:
    """Turn a refusal by the disk inside the block into a message; `place` is what is written.

    Raises:
        Failure: names the file that the system named, else `place`, and the remedy.
    """
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        path = error.filename2 or error.filename or place
        text = f"{path}: {error.strerror}; {remedy}, then run the same command again"
        raise Failure(text) from error
