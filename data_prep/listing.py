"""What an archive holds, by name and place; archives inside it come as regions of their own.

A tar inside stands for a folder of its file name. Which file is an archive its first bytes say,
not its name alone: a gzip-ed JPEG is an image, and a .tar.gz that a browser unzipped is a tar.
"""

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import NamedTuple

from data_prep.catalogue import Note
from data_prep.inflate import holds_tar, is_gzip
from data_prep.tar import BLOCK_BYTES, Damaged, Member, is_header, opened, walk

MAX_FILE_BYTES = 256 << 20
"""The largest file that is taken up: CIFAR-100's is 155 MB, a photo has some MB."""
MAX_DEPTH = 8
"""Archives inside archives; ImageNet has two."""
SNIFF_BYTES = 4096
"""Enough to inflate the first header of a tar."""
MAX_NOTED = 1_000_000
"""Folders and refused members together, which are kept in memory."""
_BATCH_ROWS = 1 << 14
_ENDINGS = (".tar", ".tar.gz", ".tgz")


class Region(NamedTuple):
    """An archive: bytes `start`..`end` of a file; `prefix` goes before the names in it."""

    path: Path
    start: int
    end: int
    prefix: str
    depth: int = 0
    is_gzip: bool = False


class Rows:
    """Files of one container, in order, and what was refused around them; workers send them."""

    def __init__(self, path: Path, strip: str = "") -> None:
        self.path, self.strip = path, strip
        self._start()

    def _start(self) -> None:
        self.names: list[str] = []
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        self.folders: set[str] = set()
        self.refused: list[Note] = []

    @property
    def is_full(self) -> bool:
        """Whether it is time to hand them on and start anew."""
        return len(self.names) + len(self.folders) + len(self.refused) >= _BATCH_ROWS

    def split(self) -> "Rows":
        """Return what is there, and start anew."""
        done = copy(self)
        self._start()
        return done

    def add(self, name: str, offset: int, size: int) -> None:
        """Add a file, or refuse it by its size alone."""
        if self.takes(name, size):
            self.names.append(name)
            self.offsets.append(offset)
            self.sizes.append(size)

    def takes(self, name: str, size: int) -> bool:
        """Tell whether a file may be that large; else it is refused."""
        if size <= MAX_FILE_BYTES:
            return True
        reason = f"{size} bytes, more than {MAX_FILE_BYTES} for one file"
        self.refused.append(Note(name, "too large a file", reason))
        return False

    def name(self, member: Member, prefix: str) -> str:
        """Return the whole name of a member, empty where it is no file to be taken up."""
        inner = _plain(member.name)
        name = prefix + inner
        if member.problem:
            kind = member.problem.partition(":")[0]
            self.refused.append(Note(prefix + member.name, kind, member.problem))
        elif not inner or is_hidden(inner):
            return ""
        elif member.is_folder:
            self.folders.add(name)
        else:
            return name
        return ""


Found = Rows | Region


def check_depth(depth: int, shown: str) -> None:
    """Refuse archives in archives in archives; Damaged names the archive, `shown`."""
    if depth > MAX_DEPTH:
        raise Damaged(f"{shown}: more than {MAX_DEPTH} archives in one another; unpack them first")


def check_noted(num_noted: int, shown: str) -> None:
    """Refuse sources that hold mostly something else than files; Damaged names `shown`."""
    if num_noted > MAX_NOTED:
        raise Damaged(
            f"{shown}: more than {MAX_NOTED:,} folders, links and the like; that is no collection "
            "of images"
        )


def find_in_tar(region: Region) -> Iterator[Found]:
    """Yield what a tar holds, in order, some thousand files at a time.

    Raises:
        Damaged: the tar is truncated, damaged, or lies in too many others.
    """
    check_depth(region.depth, str(region.path))
    rows = Rows(region.path)
    for member in walk(region.path, region.start, region.end):
        name = rows.name(member, region.prefix)
        inner = name and inside(region, name, member.offset, member.size)
        if inner:
            rows.folders.add(name)
        elif name:
            rows.add(name, member.offset, member.size)
        if inner or rows.is_full:
            yield rows.split()
        if inner:
            yield inner
    yield rows


def list_tar(region: Region) -> list[Found]:
    """Return what a tar and the tars in it hold, in order; gzips stay regions."""
    found: list[Found] = []
    for each in find_in_tar(region):
        if isinstance(each, Region) and not each.is_gzip:
            found += list_tar(each)
        else:
            found.append(each)
    return found


def inside(outer: Region, name: str, offset: int, size: int) -> Region | None:
    """Return the archive that a file of `outer` is, or None."""
    if not may_be_archive(name):
        return None
    with opened(outer.path) as (read, _):
        kind = archive_kind(name, read(offset, min(size, SNIFF_BYTES)))
    end, depth = offset + size, outer.depth + 1
    return Region(outer.path, offset, end, f"{name}/", depth, kind == "gzip") if kind else None


def may_be_archive(name: str) -> bool:
    """Tell whether a name is worth a look inside."""
    return name[-4:].lower() in (".tar", ".tgz") or name[-3:].lower() == ".gz"


def archive_kind(name: str, first: bytes) -> str:
    """Return "tar", "gzip" (with a tar inside) or "" for a file that starts with `first`.

    What is named like an archive but is none counts as one: reading it says what is wrong.
    """
    is_named_so = name.lower().endswith(_ENDINGS)
    if is_gzip(first):
        return "gzip" if is_named_so or holds_tar(first) else ""
    return "tar" if is_named_so or is_header(first[:BLOCK_BYTES]) else ""


def is_hidden(name: str) -> bool:
    """Tell .git, .DS_Store and macOS's ._copies from images; they are left out without a note."""
    return name.startswith(".") or "/." in name


def _plain(name: str) -> str:
    """Return a name without the "./" and "//" that archivers leave in it."""
    if name.startswith("./") or "//" in name or "/./" in name or name.endswith("/."):
        return "/".join(part for part in name.split("/") if part not in ("", "."))
    return "" if name == "." else name
