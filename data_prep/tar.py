"""Tars as untrusted input: headers are walked, nothing is ever extracted.

A member is named, placed and judged; its bytes are read later, straight from the tar. Python's
tarfile needs 60 us a member and takes a broken header in the middle for the end; ImageNet-21k has
14 million members, and a tar whose second half is lost must be refused.
Formats: v7, ustar, GNU (long names, base-256 sizes), pax (path, size, linkpath), as in tar(5).
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from zlib import adler32

from pipeline.spec import Misuse

BLOCK_BYTES = 512
MAX_EXTENSION_BYTES = 1 << 20
"""A long name or a pax header; real ones have some hundred bytes."""
MAX_NAME_BYTES = 4096
_SHOWN_NAME = 200
_PIECE_BYTES = 1 << 20
_MAX_PADDING_BYTES = (1 << 20) + 2 * BLOCK_BYTES
"""Zeros at the end: two blocks, up to the next record; tar -b makes records of up to 1 MiB."""
_MAX_LEFT_OVER_BYTES = 20 * BLOCK_BYTES
"""Old tars write whole records of 10,240 bytes, whatever is in their buffer behind the end."""
_ZEROS = bytes(BLOCK_BYTES)
_REGULAR = frozenset(b"0\x007")  # 7 is "contiguous": POSIX has it read as a regular file
_LINKS, _DEVICES, _FOLDER, _SPARSE = frozenset(b"12"), frozenset(b"346"), ord("5"), ord("S")
_WITHOUT_BYTES = _LINKS | _DEVICES | {_FOLDER}
_LONG_NAME, _LONG_LINK, _GLOBAL = ord("L"), ord("K"), ord("g")
_EXTENSIONS = frozenset(b"LKxXg")
_NOTHING: Mapping[str, bytes] = {}

ReadAt = Callable[[int, int], bytes]
"""(position, size) -> the bytes there, fewer at the end; a walk asks for rising positions."""


class Damaged(Misuse):
    """An archive that is cut off, or broken in the middle."""


class Member(NamedTuple):
    """One member: where its header and bytes lie, and why it must not be used (else empty)."""

    name: str
    header: int
    offset: int
    size: int
    is_folder: bool
    problem: str


class _Broken(ValueError):
    """What is wrong at a place of a tar."""


def walk(path: Path, start: int = 0, end: int | None = None) -> Iterator[Member]:
    """Yield the members of the tar at bytes `start`..`end` of the file `path`, in order.

    Raises:
        Damaged: the tar is truncated, damaged or cannot be read; the message names the byte and
            the last member.
    """
    with opened(path) as (read, size):
        yield from walk_through(read, start, size if end is None else end, str(path))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[ReadAt, int]]:
    """Open a file to be read at any place; gives the reading function and the size.

    Raises:
        Damaged: it cannot be opened, or later not be read.
    """

    def read(position: int, size: int) -> bytes:
        try:
            return os.pread(handle, size, position)
        except OSError as error:
            raise _unreadable(path, error) from None

    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        yield read, os.fstat(handle).st_size
    finally:
        os.close(handle)


def _unreadable(path: Path, error: OSError) -> Damaged:
    return Damaged(f"{path}: cannot be read ({error.strerror}); check its disk and permissions")


def walk_through(read: ReadAt, start: int, end: int | None, shown: str) -> Iterator[Member]:
    """Yield the members of a tar that is read by `read`, never backwards; as `walk` does.

    Args:
        end: where the tar ends at the latest; None where only its reading will tell.
        shown: how messages name it.
    """
    walker = _Walker(read, start, sys.maxsize if end is None else end)
    try:
        while (member := walker.advance()) is not None:
            yield member
    except _Broken as error:
        raise Damaged(
            f"{shown}: truncated or damaged tar at byte {walker.position}, after {walker.last} "
            f"({error}); get it again, or repack what can be read"
        ) from None


def is_header(block: bytes) -> bool:
    """Tell whether a block of 512 bytes is a tar header: whether its checksum holds."""
    if len(block) != BLOCK_BYTES:
        return False
    field = block[148:156]
    try:
        claimed = int(field.partition(b"\0")[0], 8)
    except ValueError:
        return False
    # The low half of adler32 is 1 + the sum of the bytes, exactly so for 256 of them.
    halves = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF)
    total = halves - 2 - sum(field) + 8 * ord(" ")
    # Old Sun tars summed signed characters.
    return claimed == total or claimed == total - 256 * sum(byte > 127 for byte in block)


def printable(name: str) -> str:
    """Return a name that can be shown and written as JSON, whatever bytes it came from."""
    if name.isascii() and name.isprintable():
        return name
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(f"\\x{ord(c):02x}" if _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    return ord(character) < 32 or 127 <= ord(character) < 160


class _Walker:
    """Where a walk stands: `position` is the first byte that is not understood yet."""

    def __init__(self, read: ReadAt, start: int, end: int) -> None:
        self._read, self._end = read, end
        self._global: dict[str, bytes] = {}
        self.position, self.last = start, "the start"

    def advance(self) -> Member | None:
        """Return the next member; None at the end mark."""
        at = header = self.position
        block = self._header(at)
        if block is None:
            self._check_tail(at)
            return None
        given = self._global or _NOTHING
        if block[156] in _EXTENSIONS:
            block, at, given = self._extended(block, at)
        kind = block[156]
        name, is_folder = _name(block, kind, given)
        data = at + BLOCK_BYTES
        if kind == _SPARSE:
            data = self._after_sparse_map(block, data)
        size = 0 if is_folder or kind in _WITHOUT_BYTES else _size(block, given)
        if data + size > self._end:
            raise _Broken(f"member '{_shown(name)}' claims {size} bytes, more than there are")
        self.position = data + _padded(size)
        self.last = _shown(name)
        if is_folder:
            return Member(self.last, header, 0, 0, True, _name_problem(name))
        problem = _kind_problem(block, kind, given) or _name_problem(name)
        return Member(self.last, header, data, size, False, problem)

    def _header(self, at: int) -> bytes | None:
        """Return the header at a byte; None where the end mark is."""
        block = self._read(at, max(min(BLOCK_BYTES, self._end - at), 0))
        if is_header(block):
            return block
        if not block or block != _ZEROS[: len(block)]:
            raise _Broken("no header and no end mark there")
        return None

    def _check_tail(self, at: int) -> None:
        """Refuse an end mark that is none: zeros for what is lost, or a tar behind a tar."""
        position = used = at  # what lies before `used` is not all zeros
        while position < self._end:
            piece = self._read(position, min(_PIECE_BYTES, self._end - position))
            if not piece:
                break
            if content := piece.rstrip(b"\0"):
                self._refuse_headers(content, position)
                used = position + len(content)
            position += len(piece)
            if position - used > _MAX_PADDING_BYTES:
                raise _Broken(
                    "over 1 MiB of zeros follow its end mark: the rest was never written or "
                    "downloaded, or another tar lies behind"
                )
        if used - at > _MAX_LEFT_OVER_BYTES:
            raise _Broken(f"its end mark is there, but {used - at} bytes follow that are no tar")

    def _refuse_headers(self, piece: bytes, position: int) -> None:
        for start in range(0, len(piece), BLOCK_BYTES):
            if is_header(piece[start : start + BLOCK_BYTES]):
                raise _Broken(
                    f"its end mark is there, but a member follows at byte {position + start}"
                )

    def _extended(self, block: bytes, at: int) -> tuple[bytes, int, dict[str, bytes]]:
        """Return the header behind long names and pax headers, its place, and what they say."""
        given: dict[str, bytes] = {}
        while (kind := block[156]) in _EXTENSIONS:
            size = _number(block[124:136])
            if size > MAX_EXTENSION_BYTES:
                raise _Broken(f"an extended header claims {size} bytes")
            data = self._read(at + BLOCK_BYTES, min(size, max(self._end - at - BLOCK_BYTES, 0)))
            if len(data) < size:
                raise _Broken("it ends within an extended header")
            if kind == _GLOBAL:
                self._global.update(_pax(data))
            else:  # of several the first one counts, as for tarfile
                given = {**_extension(kind, data), **given}
            at += BLOCK_BYTES + _padded(size)
            following = self._header(at)
            if following is None:
                raise _Broken("an extended header without a member")
            block = following
        return block, at, {**self._global, **given}

    def _after_sparse_map(self, block: bytes, at: int) -> int:
        """Return where the bytes of an old GNU sparse file begin: behind the blocks of its map."""
        more = block[482]
        while more:
            piece = self._read(at, max(min(BLOCK_BYTES, self._end - at), 0))
            if len(piece) < BLOCK_BYTES:
                raise _Broken("it ends within the map of a sparse file")
            more = piece[504]
            at += BLOCK_BYTES
        return at


def _name(block: bytes, kind: int, given: Mapping[str, bytes]) -> tuple[str, bool]:
    """Return the name of a member, and whether it is a folder."""
    raw = _text(block, 0, 100)
    is_folder = kind == _FOLDER or (not kind and raw.endswith(b"/"))  # so said v7
    if block[345] and block[257:263] == b"ustar\0":
        raw = _text(block, 345, 500) + b"/" + raw
    if given:
        raw = given.get("GNU.sparse.name") or given.get("path") or raw
    name = raw.decode("utf-8", "surrogateescape")
    return (name.rstrip("/") if is_folder else name), is_folder


def _text(block: bytes, start: int, end: int) -> bytes:
    stop = block.find(0, start, end)
    return block[start : end if stop < 0 else stop]


def _size(block: bytes, given: Mapping[str, bytes]) -> int:
    claimed = given.get("size", b"")
    if not claimed:
        return _number(block[124:136])
    if not claimed.isdigit() or len(claimed) > 20:
        raise _Broken(f"a pax header claims {claimed[:20]!r} bytes")
    return int(claimed)


def _number(field: bytes) -> int:
    """Return a number in octal digits, or in base 256 (GNU, for 8 GiB and more)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        number = int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:
        raise _Broken(f"its header claims {field!r} bytes")
    return number


def _padded(size: int) -> int:
    return (size + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES


def _extension(kind: int, data: bytes) -> dict[str, bytes]:
    if kind == _LONG_NAME:
        return {"path": data.partition(b"\0")[0]}
    if kind == _LONG_LINK:
        return {"linkpath": data.partition(b"\0")[0]}
    return _pax(data)


def _pax(data: bytes) -> dict[str, bytes]:
    """Return what matters of the records "LENGTH KEY=VALUE\\n" of a pax header."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 10)
        digits = data[at : max(space, at)]
        end = at + int(digits) if digits.isdigit() else 0
        if not at < space < end <= len(data) or data[end - 1] != ord("\n"):
            raise _Broken("a damaged extended header")
        key, _, value = data[space + 1 : end - 1].partition(b"=")
        if key in (b"path", b"size", b"linkpath", b"GNU.sparse.name"):
            found[key.decode()] = value
        if key.startswith(b"GNU.sparse."):
            found["sparse"] = b"yes"
        at = end
    return found


def _kind_problem(block: bytes, kind: int, given: Mapping[str, bytes]) -> str:
    if kind in _LINKS:
        target = given.get("linkpath") or _text(block, 157, 257)
        target_shown = _shown(target.decode("utf-8", "surrogateescape"))
        return f"link: to {target_shown}, not a regular file"
    if kind in _DEVICES:
        return "device: special, not a regular file"
    if kind in _REGULAR and "sparse" not in given:
        return ""
    return "special member: sparse or unknown, not a regular file"


def _name_problem(name: str) -> str:
    if name.startswith("/") or "\\" in name or (".." in name and ".." in name.split("/")):
        return "unsafe name: absolute, or with '..' or a backslash"
    if not name or name.endswith("/"):
        return "unsafe name: empty, or ends with a slash"
    if name.isascii() and name.isprintable() and len(name) <= MAX_NAME_BYTES:
        return ""
    if any(map(_is_control, name)):
        return "unsafe name: control characters"
    num_bytes = len(name.encode("utf-8", "surrogateescape"))
    return f"unsafe name: {num_bytes} bytes long" if num_bytes > MAX_NAME_BYTES else ""


def _shown(name: str) -> str:
    """Return a name as `printable` does; one that is too long is cut."""
    if len(name) <= MAX_NAME_BYTES:
        return printable(name)
    return f"{printable(name[:_SHOWN_NAME])}..."
