"""Failures that end a command with exit code 1, among them the full disk."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


class Failed(RuntimeError):
    """The work cannot go on; the message names the file, the value and the remedy."""


def full_disk(path: Path, needed_bytes: int) -> Failed:
    """Return the failure for a disk on which `needed_bytes` more do not fit."""
    return Failed(
        f"{path}: the disk is full or its quota is used up; about {needed_bytes / 1e9:.3f} GB more "
        "are needed there: free space or choose another OUT, then run the same command again, "
        "which keeps what is finished"
    )


@contextlib.contextmanager
def naming_full_disk(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turn the system's "no space left" inside the block into a message with path and size."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(path, needed_bytes) from None
        raise
