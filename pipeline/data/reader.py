"""Reads one image's bytes straight from its tar and checks them.

One pread at the indexed offset, then crc32c: 199 of 200 single bit flips in a JPEG decode without
any error, so only a checksum finds them. Whatever is wrong, the error names the shard and the key.
"""

import os
from collections import OrderedDict
from typing import Any, BinaryIO

import google_crc32c

from pipeline.data.index import SplitIndex
from pipeline.spec import Failure


class BrokenSample(Failure):
    """A sample that cannot be used as it is: the message names shard, key and remedy."""


class ShardReader:
    """Reads samples of a split by global id; may be pickled and forked.

    Args:
        index: of the split.
        max_open: tars kept open at once by this process (a lane has one or two in use).
    """

    def __init__(self, index: SplitIndex, max_open: int = 512) -> None:
        assert max_open >= 1
        self.index = index
        self._max_open = max_open
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def read(self, sample_id: int) -> bytes:
        """Return the image's bytes as they lie in the shard.

        Raises:
            BrokenSample: the shard is missing, too short, or its bytes differ from the index.
        """
        shard, _ = self.index.locate(sample_id)
        entry = self.index.entry(sample_id)
        size, offset = int(entry["size"]), int(entry["offset"])
        try:
            data = os.pread(self._file(shard).fileno(), size, offset)
        except OSError as error:
            raise self.broken(sample_id, f"cannot be read ({error.strerror})") from None
        if len(data) < size:
            reason = f"the shard ends {size - len(data)} bytes too early: it is truncated"
            raise self.broken(sample_id, reason)
        found = google_crc32c.value(data)
        if found != entry["crc32c"]:
            reason = f"crc32c is {found:08x}, the index says {int(entry['crc32c']):08x}"
            raise self.broken(sample_id, reason)
        return data

    def broken(self, sample_id: int, reason: str) -> BrokenSample:
        """Return the error for a sample: where it lies, what is wrong, what to do."""
        shard, row = self.index.locate(sample_id)
        folder = self.index.folder
        return BrokenSample(
            f"{self.index.tar(shard)}: sample {self._key(sample_id)} (row {row}): {reason}; "
            f"run `python -m data_prep verify {folder}`, then restore or build this shard again"
        )

    def close(self) -> None:
        """Close the tars."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, shard: int) -> BinaryIO:
        file = self._files.pop(shard, None)
        if file is None:
            file = open(self.index.tar(shard), "rb", buffering=0)  # noqa: SIM115 - kept open
            if len(self._files) >= self._max_open:
                self._files.popitem(last=False)[1].close()
        self._files[shard] = file  # last used stands last
        return file

    def _key(self, sample_id: int) -> str:
        """Return the key as text, or the id where the tar cannot tell it any more."""
        try:
            return repr(self.index.key(sample_id))
        except Exception:  # the tar is broken anyhow; it must not hide the first error
            return f"with id {sample_id}"
