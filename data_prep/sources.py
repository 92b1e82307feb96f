"""Where the raw images are: folders, tars, gzips, and any of these inside one another.

1. Each source is looked through from front to back; tars inside it become tasks.
2. The tasks are walked over workers, and what they found is put into the order of step 1.
3. What is inside a gzip passes into spools on scratch, in that order too.
4. The catalogue lists it all, the same from any number of workers; of two files of one name the
   second is refused.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.catalogue import Catalogue, CatalogueWriter, Note
from data_prep.gather import Collector, Count, without_doubles
from data_prep.inflate import is_gzip
from data_prep.listing import (
    SNIFF_BYTES,
    Found,
    Region,
    Rows,
    find_in_tar,
    inside,
    is_hidden,
    may_be_archive,
)
from data_prep.tar import opened, printable
from pipeline.spec import Misuse

MAX_TASK_BYTES = 1 << 30
"""A larger tar is walked here, and the tars inside it become tasks of their own."""
MAX_FOLDERS_DEEP = 64
SPOOLS = "spools"
"""Folder inside the work folder for what is inside gzips."""


class Source(NamedTuple):
    """A folder, a tar or a gzip with a tar inside; `prefix` goes before all names in it."""

    path: Path
    prefix: str = ""


def write_catalogue(
    sources: Sequence[Source], work: Path, seed: int = 0, workers: int = 1
) -> Catalogue:
    """List all files of the sources in `work`/catalogue; gzips go to `work`/SPOOLS.

    Args:
        seed: of the final order, in which spools are divided.

    Raises:
        Misuse: there is no such source, it holds no file, or an archive in it is damaged.
        Failed: there is too little room for the spools.
    """
    work.mkdir(parents=True, exist_ok=True)
    listed = work / "listed"
    digest = hashlib.sha256()
    with CatalogueWriter(listed) as writer, contextlib.closing(Count()) as count:
        collector = Collector(writer, work / SPOOLS, seed, count)
        for source in sources:
            before = len(writer)
            collector.collect(_find(source, digest), workers)
            if len(writer) == before:
                raise Misuse(
                    f"{source.path}: no file found in it; give a folder or an archive with images"
                )
        writer.finish(digest.hexdigest())
    return without_doubles(Catalogue(listed), collector.hashes, work / "catalogue")


def _find(source: Source, digest: "hashlib._Hash") -> Iterator[Found]:
    """Yield the files, gzips and tars of a source in order; `digest` takes in all their states."""
    path, prefix = source.path.absolute(), source.prefix
    if path.is_dir():
        yield from _find_in_folder(path, prefix, digest)
        return
    if not path.is_file():
        raise Misuse(f"{path}: no such folder or archive; give the images to build from")
    _digest(digest, prefix, path.stat())
    yield from _open_up(_whole(path, prefix))


def _whole(path: Path, prefix: str) -> Region:
    with opened(path) as (read, size):
        zipped = is_gzip(read(0, SNIFF_BYTES))
    return Region(path, 0, size, prefix, is_gzip=zipped)


def gzips_on_top(source: Source) -> Iterator[Region]:
    """Yield what of a source is a gzip with a tar: itself, or files of the folder that it is.

    These are the regions that `write_catalogue` spools, but for gzips that lie deeper.
    """
    path, prefix = source.path.absolute(), source.prefix
    if not path.is_dir():
        whole = _whole(path, prefix)
        yield from [whole] if whole.is_gzip else []
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if not may_be_archive(entry.name) or is_hidden(entry.name) or not entry.is_file():
                continue
            size = entry.stat().st_size
            whole = Region(path / entry.name, 0, size, prefix)
            archive = inside(whole, printable(prefix + entry.name), 0, size)
            if archive is not None and archive.is_gzip:
                yield archive


def _find_in_folder(root: Path, prefix: str, digest: "hashlib._Hash") -> Iterator[Found]:
    rows = Rows(root, prefix)
    for inner, status in _files(root, "", rows, ()):
        _digest(digest, prefix + inner, status)
        name = prefix + inner
        archive = None
        if not stat.S_ISREG(status.st_mode):
            rows.refused.append(Note(printable(name), "special file", "not a regular file"))
        else:
            whole = Region(root / inner, 0, status.st_size, prefix)
            archive = inside(whole, printable(name), 0, status.st_size)
            if archive is None:
                rows.add(name, 0, status.st_size)
        if archive is not None:
            rows.folders.add(printable(name))
            yield rows.split()
            yield from _open_up(archive)
        elif rows.is_full:
            yield rows.split()
    yield rows


def _files(
    root: Path, folder: str, rows: Rows, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path below root, status) of all files, sorted; folders may be links, circles end."""
    status = (root / folder).stat()
    identity = status.st_dev, status.st_ino
    if identity in above:
        return
    if len(above) > MAX_FOLDERS_DEEP:
        _refuse(rows, folder, "too deep", f"more than {MAX_FOLDERS_DEEP} folders in one another")
        return
    if folder:
        rows.folders.add(rows.strip + folder)
    with os.scandir(root / folder) as entries:
        shown = (entry for entry in entries if not is_hidden(entry.name))
        found = sorted(shown, key=lambda entry: os.fsencode(entry.name))
    for entry in found:
        name = f"{folder}/{entry.name}" if folder else entry.name
        try:
            if entry.is_dir():
                yield from _files(root, name, rows, (*above, identity))
            else:
                yield name, entry.stat()
        except OSError as error:
            _refuse(rows, name, "cannot be read", f"cannot be read: {error.strerror}")


def _refuse(rows: Rows, inner: str, kind: str, reason: str) -> None:
    rows.refused.append(Note(printable(rows.strip + inner), kind, reason))


def _digest(digest: "hashlib._Hash", name: str, status: os.stat_result) -> None:
    digest.update(f"{printable(name)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())


def _open_up(region: Region) -> Iterator[Found]:
    """Yield a small tar or a gzip itself, and of a large tar what is in it."""
    if region.is_gzip or region.end - region.start <= MAX_TASK_BYTES:
        yield region
        return
    for found in find_in_tar(region):
        if isinstance(found, Region):
            yield from _open_up(found)
        else:
            yield found
