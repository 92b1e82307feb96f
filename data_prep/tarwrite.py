"""Tars as webdataset's own writer makes them, written at the disk's speed.

Plain ustar: regular files, mode 0444, no owner, no time. Where each member lies is known while it
is written, and so is the digest of the whole: nothing is read back. Python's tarfile takes 16 us
for a header, this takes one.
"""

import hashlib
from typing import BinaryIO, NamedTuple

from data_prep.tar import BLOCK_BYTES

RECORD_BYTES = 20 * BLOCK_BYTES
"""A tar ends with zeros up to a multiple of this."""
MAX_NAME_BYTES = 100

# name, mode, uid, gid | size, mtime | checksum, regular file, no link, magic; no owner, no device
_OWNER = b"0000444\0" + b"0000000\0" * 2
_TIME = b"0" * 11 + b"\0"
_KIND = b"\0 0" + bytes(100) + b"ustar\0" + b"00"
_REST = bytes(BLOCK_BYTES - 265)
_SUM = sum(_OWNER + _TIME + _KIND) + 7 * ord(" ")
"""Of all bytes but name, size and checksum; a checksum counts as 8 spaces, one is in _KIND."""
_PADDING = bytes(BLOCK_BYTES)


class Written(NamedTuple):
    """Where a member lies: byte of its header, of its content, and the content's size."""

    header: int
    offset: int
    size: int


class TarWriter:
    """Writes members to `file`, which the caller opens, syncs and closes.

    The same members give the same bytes as webdataset's TarWriter with user, group and mtime empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        """Written so far."""

    def add(self, name: str, data: bytes) -> Written:
        """Append a member; `name` has at most 100 ASCII characters, `data` is under 8 GiB."""
        header, padding = header_of(name, len(data)), _PADDING[: -len(data) % BLOCK_BYTES]
        where = Written(self.num_bytes, self.num_bytes + BLOCK_BYTES, len(data))
        self._write(b"".join((header, data, padding)))
        return where

    def finish(self) -> str:
        """Write the end of the tar; returns the sha256 (hex) of all that was written."""
        end = 2 * BLOCK_BYTES
        self._write(bytes(end + -(self.num_bytes + end) % RECORD_BYTES))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)


def header_of(name: str, size: int) -> bytes:
    """Return the 512 bytes before the content of a member."""
    raw = name.encode("ascii")
    assert 0 < len(raw) <= MAX_NAME_BYTES, f"{name}: {len(raw)} bytes are no name for a tar member"
    digits = b"%011o\0" % size
    assert len(digits) == 12, f"{name}: {size} bytes are too many for a tar member"
    checksum = b"%06o" % (_SUM + sum(raw) + sum(digits))
    return b"".join((raw.ljust(100, b"\0"), _OWNER, digits, _TIME, checksum, _KIND, _REST))
