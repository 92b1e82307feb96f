"""Reads the arrays of an index from disk, checked against the manifest.

Small files are read whole: a mapped file costs a descriptor as long as it is mapped, of which a
large data set would need thousands, and an error of the disk under a map kills the process instead
of raising. Only a file over `WHOLE_BYTES` (a tar of more than 29,000 samples) is mapped.
"""

import errno
import hashlib
import io
import os
from pathlib import Path

import numpy as np

from pipeline.spec import Failure, Misuse

WHOLE_BYTES = 1 << 20
DISK_ERRORS = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT}
"""What a system call says where the disk or its server fails, rather than the one who calls it."""

_REMEDY = "run `python -m data_prep verify` on its folder, then build or index it again"
DISK_REMEDY = "the disk or the file server fails: look at the node's kernel log and its mounts"

Known = dict[Path, tuple[int, int, int]]
"""Files whose digest was right, by what would change with their content."""


def map_array(path: Path, dtype: np.dtype, what: str) -> np.ndarray:
    """Memory-map a one-dimensional array of `dtype`.

    Raises:
        Misuse: the file is missing or holds anything else; `what` it should hold is named.
        Failure: the disk returns errors.
    """
    try:
        return _checked(np.load(path, mmap_mode="r", allow_pickle=False), path, dtype, what)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from None


def load_array(path: Path, sha256: str, dtype: np.dtype, what: str, known: Known) -> np.ndarray:
    """Return the array in a file with this digest: in memory, or mapped where it is large.

    Args:
        path: of the file.
        sha256: that it must have, hex.
        dtype: of the array.
        what: it should hold, in words.
        known: files that were found right; they are not digested again as long as they stay.

    Raises:
        Misuse: the file is missing, another one than the manifest names, or holds something else.
        Failure: the disk returns errors.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            large = os.fstat(file.fileno()).st_size > WHOLE_BYTES
            data = None if large else file.read()
            _check_digest(path, file, data, sha256, known)
        if data is None:
            return map_array(path, dtype, what)
        return _checked(np.load(io.BytesIO(data), allow_pickle=False), path, dtype, what)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from None


def disk_error(path: Path | str, error: OSError) -> Failure:
    """Return the error for a disk that fails: which file, what the system says, where to look."""
    return Failure(f"{path}: cannot be read ({error.strerror}); {DISK_REMEDY}")


def _check_digest(
    path: Path, file: io.FileIO, data: bytes | None, sha256: str, known: Known
) -> None:
    status = os.fstat(file.fileno())
    mark = (status.st_ino, status.st_size, status.st_mtime_ns)
    if known.get(path) == mark:
        return
    hashed = hashlib.file_digest(file, "sha256") if data is None else hashlib.sha256(data)
    if hashed.hexdigest() != sha256:
        when = "changed while this job ran: its" if path in known else "its"
        raise Misuse(f"{path}: {when} sha256 differs from the manifest's; {_REMEDY}")
    known[path] = mark


def _checked(array: np.ndarray, path: Path, dtype: np.dtype, what: str) -> np.ndarray:
    if array.dtype != dtype or array.ndim != 1:
        raise Misuse(f"{path}: holds {array.dtype}, not {what}; {_REMEDY}")
    return array


def _unreadable(path: Path, error: Exception) -> Exception:
    if isinstance(error, Misuse):  # it is a ValueError
        return error
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return disk_error(path, error)
    if isinstance(error, OSError):
        return Misuse(f"{path}: cannot be read ({error.strerror}); {_REMEDY}")
    return Misuse(f"{path}: cannot be read as an index ({error}); {_REMEDY}")
