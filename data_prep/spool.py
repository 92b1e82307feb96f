"""What is inside a gzip, spread over files on scratch that can be read at any place.

A gzip cannot be read from its middle, and the shards want its images in another order. So one pass
from front to end appends each file to one of B buckets: by the top bits of its rank in the final
order, so a shard reads from one bucket, or two. A finished pass is kept; one that was interrupted
starts anew.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from data_prep.catalogue import Catalogue, CatalogueWriter, Container
from data_prep.columns import as_json, is_whole
from data_prep.failure import Failed, naming_full_disk
from data_prep.inflate import Inflater, estimate_bytes
from data_prep.listing import (
    SNIFF_BYTES,
    Region,
    Rows,
    archive_kind,
    check_depth,
    check_noted,
    may_be_archive,
)
from data_prep.order import ORDER, rank_of
from data_prep.pool import Progress
from data_prep.tar import Damaged, Member, opened, walk_through

BUCKET_BYTES = 1 << 30
MAX_BUCKETS = 256
_SAMPLE_BYTES = 64 << 20
_BUFFER_BYTES = 256 << 10  # 256 buckets then take 64 MB of memory
_MEMBERS = "members"


def spool(region: Region, folder: Path, seed: int) -> Catalogue:
    """Return what is inside a gzip, as files in buckets below `folder`; maybe already there.

    Args:
        folder: the scratch; the buckets take as much as the images inside.
        seed: of the final order; another one spreads the files otherwise.

    Raises:
        Damaged: the gzip or a tar in it is cut off or broken, or grows more than 100 times.
        Failed: the scratch has too little room.
    """
    target = folder / _identity(region, seed)
    finished = _finished(target)
    if finished is not None:
        return finished
    shutil.rmtree(target, ignore_errors=True)
    needed = _estimate(region)
    _check_room(region, folder, needed)
    with opened(region.path) as (read, _):
        stream = Inflater(read, region.start, region.end, _shown(region))
        try:
            with naming_full_disk(folder, needed):
                target.mkdir()
                _pass(stream, region, target, seed, num_buckets(needed))
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    return Catalogue(target / _MEMBERS)


def room_for(region: Region, folder: Path, seed: int) -> tuple[int, int]:
    """Return about how many bytes are inside a gzip, and how many more `spool` needs for them.

    Raises:
        Damaged: it cannot be read, or its beginning is broken.
    """
    target = folder / _identity(region, seed)
    finished = _finished(target)
    if finished is not None:
        return sum(finished.about["bytes"]), 0  # type: ignore[arg-type]
    inside = _estimate(region)
    there = sum(file.stat().st_size for file in target.glob("*"))  # that goes before it starts
    return inside, max(inside - there, 0)


def are_whole(containers: Iterable[Container], folder: Path) -> bool:
    """Tell whether those containers that are buckets below `folder` are as they were written."""
    passes = {Path(container["path"]).parent for container in containers}
    passes = {each for each in passes if each.is_relative_to(folder.absolute())}
    return all(_finished(each) is not None for each in passes)


def num_buckets(num_bytes: int) -> int:
    """Return how many buckets that many bytes get: a power of two, of about 1 GB each."""
    buckets = 1
    while buckets < MAX_BUCKETS and buckets * BUCKET_BYTES < num_bytes:
        buckets *= 2
    return buckets


def _identity(region: Region, seed: int) -> str:
    """Return a name that changes with all that decides what is in the buckets."""
    status = region.path.stat()
    facts = [str(region.path.resolve()), status.st_size, status.st_mtime_ns, *region[1:], seed]
    return hashlib.sha256(as_json(facts).encode()).hexdigest()[:16]


def _shown(region: Region) -> str:
    return region.prefix.rstrip("/") or str(region.path)


def _estimate(region: Region) -> int:
    with opened(region.path) as (read, _):
        return estimate_bytes(read, region.start, region.end, _shown(region), _SAMPLE_BYTES)


def _finished(target: Path) -> Catalogue | None:
    """Return a finished pass, if all buckets are there: scratch gets swept, folders are moved."""
    if not is_whole(target / _MEMBERS):
        return None
    members = Catalogue(target / _MEMBERS)
    paths = [Path(container["path"]) for container in members.containers]
    sizes = [path.stat().st_size if path.is_file() else -1 for path in paths]
    return members if sizes == members.about["bytes"] else None


def _check_room(region: Region, folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Failed(
            f"{folder}: what is inside {region.path} takes about {needed / 1e9:.3f} GB there, "
            f"{free / 1e9:.3f} GB are free; make room, or name another disk with --scratch"
        )


def _pass(stream: Inflater, region: Region, target: Path, seed: int, buckets: int) -> None:
    with (
        contextlib.ExitStack() as stack,
        CatalogueWriter(target / _MEMBERS) as writer,
        Progress(f"spool {region.path.name}", "bytes", region.end - region.start) as progress,
    ):
        paths = [(target / f"bucket-{number:03d}").absolute() for number in range(buckets)]
        for path in paths:
            writer.container(path)
        files = [stack.enter_context(path.open("wb", _BUFFER_BYTES)) for path in paths]
        spooler = _Spooler(writer, files, seed, stream, progress)
        spooler.take_gzip(stream, region.prefix, region.depth)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        writer.finish("")
        writer.about["bytes"] = spooler.num_bytes


class _Spooler:
    """Takes what streams by: appends files to buckets and notes them in the catalogue."""

    def __init__(
        self,
        writer: CatalogueWriter,
        files: Sequence[BinaryIO],
        seed: int,
        stream: Inflater,
        progress: Progress,
    ) -> None:
        self._writer, self._files, self._seed = writer, files, seed
        self._stream, self._progress, self._num_told = stream, progress, 0
        self._shift = 64 - (len(files).bit_length() - 1)
        self._noted = Rows(Path())
        self._noted.folders = writer.folders
        self.num_bytes = [0] * len(files)

    def take_gzip(self, stream: Inflater, prefix: str, depth: int) -> None:
        """Take the tar that a gzip holds, and see to it that the gzip is whole."""
        self._take_tar(stream, 0, None, prefix, depth)
        stream.drain()
        self._tell()

    def _take_tar(
        self, stream: Inflater, start: int, end: int | None, prefix: str, depth: int
    ) -> None:
        check_depth(depth, stream.shown)
        noted, shown = self._noted, f"{stream.shown}, inflated"
        for member in walk_through(stream.read, start, end, shown):
            name = noted.name(member, prefix)
            if name:
                self._take_file(stream, name, member, depth)
            self._writer.refuse(noted.refused)
            noted.refused.clear()
            check_noted(self._writer.num_noted, shown)

    def _take_file(self, stream: Inflater, name: str, member: Member, depth: int) -> None:
        offset, size = member.offset, member.size
        kind = ""
        if may_be_archive(name):
            kind = archive_kind(name, stream.peek(offset, min(size, SNIFF_BYTES)))
        if not kind:
            if self._noted.takes(name, size):
                self._append(stream, name, offset, size)
            return
        self._noted.folders.add(name)
        if kind == "tar":
            self._take_tar(stream, offset, offset + size, f"{name}/", depth + 1)
        else:
            inner = Inflater(stream.read, offset, offset + size, name, stream.budget)
            self.take_gzip(inner, f"{name}/", depth + 1)

    def _append(self, stream: Inflater, name: str, offset: int, size: int) -> None:
        data = stream.read(offset, size)
        if len(data) < size:
            raise Damaged(
                f"{stream.shown}, inflated: truncated tar: it ends at byte {offset + len(data)}, "
                f"in {name}; get it again"
            )
        bucket = rank_of(name, self._seed, ORDER) >> self._shift
        self._files[bucket].write(data)
        self._writer.add(name, self.num_bytes[bucket], size, bucket)
        self.num_bytes[bucket] += size
        self._tell()

    def _tell(self) -> None:
        num_read = self._stream.num_read
        self._progress.add(num_read - self._num_told)
        self._num_told = num_read
