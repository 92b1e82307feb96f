"""Tars as untrusted input: headers are walked, nothing is ever extracted.

A member is named, placed and judged; its bytes are read later, straight from the tar. Python's
tarfile takes a broken header in the middle of a tar for its end, so the end mark is checked here.
"""

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.failure import naming_full_disk
from data_prep.pool import Progress
from pipeline.spec import Misuse

MAX_INFLATION = 100
"""A .tar.gz of images grows 1 to 5 times; one that grows more than this is an attack."""
_BLOCK_BYTES = 4 << 20
_BROKEN = (tarfile.TarError, ValueError, OverflowError, IndexError, EOFError, RecursionError)


class Damaged(Misuse):
    """A tar that is cut off, or broken in the middle."""


class Member(NamedTuple):
    """One member: where its header and bytes lie, and why it must not be used (else empty)."""

    name: str
    header: int
    offset: int
    size: int
    is_folder: bool
    problem: str


def walk(path: Path, start: int = 0, end: int | None = None) -> Iterator[Member]:
    """Yield the members of the tar at bytes `start`..`end` of `path`, in order.

    Raises:
        Damaged: the tar is truncated or damaged; the message names the byte and the last member.
    """
    end = path.stat().st_size if end is None else end
    last, position = "the start", start
    with path.open("rb") as file:
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                kept: list[tarfile.TarInfo] = vars(tar)["members"]
                while (info := tar.next()) is not None:
                    kept.clear()  # a tar of 13 million members must fit into memory
                    _check_place(info, tar.offset, position, end)
                    position, last = tar.offset, info.name
                    yield _member(info)
        except _BROKEN as error:
            raise _damaged(path, position, last, str(error)) from None
        file.seek(position)
        if file.read(min(512, end - position)).strip(b"\0") or position >= end:
            raise _damaged(path, position, last, "no header and no end mark there")


def _check_place(info: tarfile.TarInfo, following: int, position: int, end: int) -> None:
    if info.size < 0 or following <= position:
        raise ValueError(f"member {info.name!r} claims {info.size} bytes")
    if info.isreg() and info.offset_data + info.size > end:
        raise ValueError(f"member {info.name!r} claims {info.size} bytes, more than there are")


def _damaged(path: Path, position: int, last: str, reason: str) -> Damaged:
    return Damaged(
        f"{path}: truncated or damaged tar at byte {position}, after {printable(last)} "
        f"({reason}); get it again, or repack what can be read"
    )


def _member(info: tarfile.TarInfo) -> Member:
    name, header = printable(info.name), info.offset
    if info.isdir():
        return Member(name, header, 0, 0, True, _name_problem(info.name))
    plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()
    problem = _name_problem(info.name) if plain else f"{_kind(info)}, not a regular file"
    return Member(name, header, info.offset_data, info.size, False, problem)


def _kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"link: to {printable(info.linkname)}"
    return "device: special" if info.isdev() else "special member: sparse or unknown"


def _name_problem(name: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name:
        return "unsafe name: absolute, or with '..' or a backslash"
    if any(ord(character) < 32 for character in name):
        return "unsafe name: control characters"
    return ""


def printable(name: str) -> str:
    """Return a name that can be shown and written as JSON, whatever bytes it came from."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if ord(c) >= 32 else f"\\x{ord(c):02x}" for c in text)


def is_gzip(path: Path) -> bool:
    """Tell whether a file starts like gzip."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def inflate(source: Path, target: Path) -> None:
    """Decompress a .tar.gz beside the shards: shuffled reading needs random access.

    Raises:
        Damaged: the file is no whole gzip, or grows more than `MAX_INFLATION` times.
        Failed: the disk is full.
    """
    compressed = source.stat().st_size
    temporary = target.with_name(f".{target.name}.tmp")
    written = 0
    with (
        naming_full_disk(target, 6 * compressed),
        Progress(f"unzip {source.name}", "bytes") as done,
    ):
        try:
            with gzip.open(source) as stream, temporary.open("wb") as file:
                while block := stream.read(_BLOCK_BYTES):
                    written += len(block)
                    if written > MAX_INFLATION * compressed + _BLOCK_BYTES:
                        raise ValueError(f"it grows more than {MAX_INFLATION} times")
                    file.write(block)
                    done.add(len(block))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(target)
        except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
            raise _damaged(source, written, "decompression", str(error)) from None
        finally:
            temporary.unlink(missing_ok=True)
