"""Reads one image's bytes straight from its tar and checks them.

One pread at the indexed offset, then crc32c: 199 of 200 single bit flips in a JPEG decode without
any error, so only a checksum finds them. Whatever is wrong, the error names the shard and the key,
and what became of the file: cut, replaced or changed since, no tar at all, newer than its index.
"""

import errno
import io
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from pipeline.data.index import SplitIndex
from pipeline.data.index_files import DISK_ERRORS, DISK_REMEDY
from pipeline.data.places import ShardGone
from pipeline.spec import Failure


class BrokenSample(Failure):
    """A sample that cannot be used as it is: the message names shard, key and remedy."""


class _Tar(NamedTuple):
    """A tar that is open, and when it was last changed as it was opened."""

    file: io.FileIO
    mtime_ns: int


class ShardReader:
    """Reads samples of a split by global id; may be pickled and forked.

    Args:
        index: of the split; its `places` say where the tars are.
        max_open: tars kept open at once by this process (a lane has one or two in use).
    """

    def __init__(self, index: SplitIndex, max_open: int = 512) -> None:
        assert max_open >= 1
        self.index = index
        self._max_open = min(max_open, index.places.keep)
        self._files: OrderedDict[int, _Tar] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def read(self, sample_id: int) -> bytes:
        """Return the image's bytes as they lie in the shard.

        Raises:
            BrokenSample: the shard is missing, too short, or its bytes differ from the index.
            Failure: the shard cannot be brought here: its server or this node's disk fails.
        """
        shard, row = self.index.locate(sample_id)
        try:
            return self._read(shard, row, sample_id)
        except BrokenSample:
            renewed = self.index.places.renew(shard)
            self._close(shard)  # a shard that is restored meanwhile is found at the next read
            if not renewed:
                raise
        return self._read(shard, row, sample_id)

    def expect(self, sample_ids: Sequence[int] | np.ndarray) -> None:
        """Say which samples will be read soon; shards that must come from far start coming."""
        shards = np.unique(self.index.starts.searchsorted(sample_ids, "right") - 1)
        self.index.places.expect(shards.tolist())

    def broken(self, sample_id: int, reason: str) -> BrokenSample:
        """Return the error for a sample: where it lies, what is wrong, what to do."""
        return self._broken(sample_id, reason, is_indexed_tar=True)

    def close(self) -> None:
        """Close the tars."""
        for shard in list(self._files):
            self._close(shard)

    def _read(self, shard: int, row: int, sample_id: int) -> bytes:
        entry = self.index.arrays(shard)[0][row]
        size, offset = int(entry["size"]), int(entry["offset"])
        try:
            data = os.pread(self._tar(shard).file.fileno(), size, offset)
        except OSError as error:
            raise self._unreadable(sample_id, error) from None
        except ShardGone as error:
            raise self.broken(sample_id, str(error)) from None
        if len(data) < size:
            raise self._wrong(sample_id, self._shortness(shard))
        found = google_crc32c.value(data)
        if found != entry["crc32c"]:
            reason = f"crc32c is {found:08x}, the index says {int(entry['crc32c']):08x}"
            raise self._wrong(sample_id, reason)
        return data

    def _tar(self, shard: int) -> _Tar:
        tar = self._files.pop(shard, None)
        if tar is None:
            while len(self._files) >= self._max_open:
                self._close(next(iter(self._files)))
            tar = self._open(shard)
        self._files[shard] = tar  # last used stands last
        return tar

    def _open(self, shard: int) -> _Tar:
        path = self.index.places.path(shard)
        try:
            file = io.FileIO(path)
            return _Tar(file, os.fstat(file.fileno()).st_mtime_ns)
        except BaseException:
            self.index.places.release(shard)
            raise

    def _close(self, shard: int) -> None:
        tar = self._files.pop(shard, None)
        if tar is not None:
            tar.file.close()
            self.index.places.release(shard)

    def _broken(self, sample_id: int, reason: str, is_indexed_tar: bool) -> BrokenSample:
        shard, row = self.index.locate(sample_id)
        key, origin = self._key(sample_id), self.index.places.origin(shard)
        if key is None:
            name = f"with id {sample_id} (row {row})"
        elif is_indexed_tar:
            name = f"{key!r} (row {row})"
        else:
            name = f"with id {sample_id} (row {row}, which the tar now calls {key!r})"
        told = reason.removeprefix(f"{origin}: ")
        return BrokenSample(f"{origin}: sample {name}: {told}; {self.index.places.remedy}")

    def _wrong(self, sample_id: int, reason: str) -> BrokenSample:
        """Return the error for bytes that are not the indexed ones, with all that the file tells.

        Where it was changed or has another size, the key in it may be another sample's.
        """
        shard, _ = self.index.locate(sample_id)
        kind = _kind(self._files[shard].file)
        history = self._history(shard, is_tar=not kind)
        told = "; ".join([reason, *kind, *history])
        return self._broken(sample_id, told, is_indexed_tar=not kind and not history)

    def _shortness(self, shard: int) -> str:
        """Return how a shard is too short for one of its samples."""
        size = os.fstat(self._files[shard].file.fileno()).st_size
        missing = self.index.shards[shard].num_bytes - size
        if missing <= 0:
            return "it lies beyond the end of the shard"
        return f"the shard ends {missing:,} bytes too early"

    def _history(self, shard: int, is_tar: bool) -> list[str]:
        """Return what a file tells of its past, once its bytes were found wrong."""
        record, (file, mtime_ns) = self.index.shards[shard], self._files[shard]
        now = os.fstat(file.fileno())
        told = []
        if now.st_size != record.num_bytes:
            told.append(f"it has {now.st_size:,} bytes, the manifest says {record.num_bytes:,}")
        if now.st_mtime_ns != mtime_ns:
            told.append("it was changed while this job had it open")
        elif not self.index.places.are_copies and now.st_mtime_ns > self._indexed_ns(shard):
            remedy = ": if that is right, index it again" if is_tar else ""
            told.append(f"it was changed after its index was written{remedy}")
        return told

    def _indexed_ns(self, shard: int) -> float:
        """Return when the index of a shard was written, by its mtime."""
        try:
            return (self.index.folder / self.index.shards[shard].index_file).stat().st_mtime_ns
        except OSError:
            return float("inf")

    def _unreadable(self, sample_id: int, error: OSError) -> Failure:
        shard, _ = self.index.locate(sample_id)
        reason = f"cannot be read ({error.strerror})"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "raise the limit on open files (`ulimit -n`)"
            return Failure(f"{self.index.places.origin(shard)}: {reason}; {remedy}")
        if error.errno in DISK_ERRORS:
            reason += f": {DISK_REMEDY}"
        return self.broken(sample_id, reason)

    def _key(self, sample_id: int) -> str | None:
        """Return the key that the tar has at the sample's place, None where it tells none."""
        try:
            return self.index.key(sample_id)
        except Exception:  # the tar is broken anyhow; it must not hide the first error
            return None


def _kind(file: io.FileIO) -> list[str]:
    """Return what a file is by its first block, in words; nothing where it may be a tar."""
    try:
        block = os.pread(file.fileno(), tarfile.BLOCKSIZE, 0)
    except OSError:  # what was wrong first is told
        return []
    if not block:
        return ["it is empty"]
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return [f"it is no tar: it begins with {block[:24]!r}"]
    return []
