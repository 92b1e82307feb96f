"""Where the raw images are: a tree of folders, a tar, or tars inside either.

A source is listed once, as columns (13 million rows fit into memory), and its images are then read
by place: a file of its own, or bytes `offset`..`offset + size` of a tar.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_prep.archive import inflate, is_gzip, printable, walk
from data_prep.clean import MAX_IMAGE_BYTES
from data_prep.pool import Progress
from pipeline.spec import Misuse

_MAX_OPEN = 64


class Place(NamedTuple):
    """The bytes of one image: in a tar, or (where `tar` is empty) in the file `name` itself."""

    name: str
    tar: str
    offset: int
    size: int


@dataclass
class Listing:
    """All candidates of the source `root`, and what was refused by its name or type alone."""

    root: Path
    places: list[Place] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.places)


class Reader:
    """Reads images of one source by place; keeps a few tars open."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, int] = {}

    def read(self, place: Place) -> bytes:
        """Return the bytes of an image; OSError where they cannot be read."""
        if not place.tar:
            return (self._root / place.name).read_bytes()
        return os.pread(self._handle(place.tar), place.size, place.offset)

    def close(self) -> None:
        """Close all tars."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _handle(self, tar: str) -> int:
        if tar not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self.close()
            self._open[tar] = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[tar]


def list_source(source: Path, work: Path) -> Listing:
    """List a folder, a .tar or a .tar.gz (which is first decompressed into the folder `work`).

    Raises:
        Misuse: there is no such source, it is of another kind, or a tar in it is damaged.
    """
    if not source.exists():
        raise Misuse(f"{source}: no such folder or tar; give the images to build from")
    with Progress(f"list {source.name}", "files") as progress:
        if source.is_dir():
            listing = _list_tree(source, progress)
        else:
            listing = _list_archive(source, _as_tar(source, work), progress)
    if not listing.places:
        raise Misuse(f"{source}: no file found in it; give a folder or a tar with images")
    return listing


def fingerprint(source: Path) -> str:
    """Return what changes when a tar does: its size and time of change."""
    status = source.stat()
    return f"{status.st_size} bytes, changed {status.st_mtime_ns}"


def _as_tar(source: Path, work: Path) -> Path:
    """Return the source itself, or what is inside where it is a .tar.gz."""
    if not is_gzip(source):
        return source
    unique = hashlib.sha256(f"{source.resolve()} {fingerprint(source)}".encode()).hexdigest()
    tar = work / f"source-{unique[:16]}.tar"
    if not tar.exists():
        inflate(source, tar)
    return tar


def _list_archive(source: Path, tar: Path, progress: Progress) -> Listing:
    listing = Listing(root=source, fingerprint=fingerprint(source))
    _add_tar(listing, tar, "", progress, 0, None)
    return listing


def _add_tar(
    listing: Listing, tar: Path, prefix: str, progress: Progress, start: int, end: int | None
) -> None:
    """Add the images of a tar; a tar inside it stands for a folder of its name."""
    for member in walk(tar, start, end):
        name = prefix + member.name.removeprefix("./")
        if member.problem:
            listing.refused.append((name, member.problem.partition(":")[0], member.problem))
        elif _is_hidden(name):
            continue
        elif member.is_folder:
            listing.folders.add(name.strip("/"))
        elif name.endswith(".tar") and start == 0:
            listing.folders.add(name)
            stop = member.offset + member.size
            _add_tar(listing, tar, f"{name}/", progress, member.offset, stop)
        else:
            _add(listing, Place(name, str(tar), member.offset, member.size), progress)


def _is_hidden(name: str) -> bool:
    """Tell .git, .DS_Store and macOS's ._copies from images; they are left out without a note."""
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


def _add(listing: Listing, place: Place, progress: Progress) -> None:
    progress.add()
    if place.size > MAX_IMAGE_BYTES:
        reason = f"{place.size} bytes, more than {MAX_IMAGE_BYTES} for one image"
        listing.refused.append((printable(place.name), "too large a file", reason))
    else:
        listing.places.append(place)


def _list_tree(root: Path, progress: Progress) -> Listing:
    listing = Listing(root=root)
    digest = hashlib.sha256()
    for name, status in _files(root, "", listing, set()):
        digest.update(f"{printable(name)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        if not stat.S_ISREG(status.st_mode):
            listing.refused.append((printable(name), "special file", "not a regular file"))
        elif name.endswith(".tar"):
            listing.folders.add(name)
            _add_tar(listing, root / name, f"{name}/", progress, 0, None)
        else:
            _add(listing, Place(name, "", 0, status.st_size), progress)
    listing.fingerprint = digest.hexdigest()
    return listing


def _files(
    root: Path, folder: str, listing: Listing, seen: set[tuple[int, int]]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path below root, status) of all files, sorted; folders may be links, circles end."""
    status = (root / folder).stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(root / folder) as entries:
        shown = (entry for entry in entries if not _is_hidden(entry.name))
        found = sorted(shown, key=lambda entry: os.fsencode(entry.name))
    for entry in found:
        name = f"{folder}/{entry.name}" if folder else entry.name
        try:
            if entry.is_dir():
                listing.folders.add(name)
                yield from _files(root, name, listing, seen)
            else:
                yield name, entry.stat()
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            listing.refused.append((printable(name), "cannot be read", reason))
