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
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from data_prep.catalogue import Catalogue, CatalogueWriter
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
    if is_whole(target / _MEMBERS):
        members = Catalogue(target / _MEMBERS)
        if _has_all_bytes(members):
            return members
    shutil.rmtree(target, ignore_errors=True)
    with opened(region.path) as (read, _):
        shown = region.prefix.rstrip("/") or str(region.path)
        needed = estimate_bytes(read, region.start, region.end, shown, _SAMPLE_BYTES)
        _check_room(region, folder, needed)
        stream = Inflater(read, region.start, region.end, shown)
        try:
            with naming_full_disk(folder, needed):
                target.mkdir()
                _pass(stream, region, target, seed, num_buckets(needed))
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    return Catalogue(target / _MEMBERS)


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


def _has_all_bytes(members: Catalogue) -> bool:
    """Tell whether all buckets are there: scratch gets swept, and folders are moved."""
    paths = [Path(container["path"]) for container in members.containers]
    sizes = [path.stat().st_size if path.is_file() else -1 for path in paths]
    return sizes == members.about["bytes"]


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
        self._noted.folders, self._noted.refused = writer.folders, writer.refused
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
            check_noted(len(noted.folders) + len(noted.refused), shown)

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
