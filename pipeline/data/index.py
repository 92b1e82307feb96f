"""The index beside each shard: where every image lies in the tar, and its labels.

`shard-000000.idx.npy` is an array of `ENTRY`, `shard-000000.lab.npy` one flat int32 array into
which the entries point. A start reads none of them: a shard's are read when it is first needed. A
sample's global id counts through the shards of its split in the order of the manifest.
"""

import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.index_files import Known, load_array, map_array
from pipeline.data.manifest import Manifest, Shard
from pipeline.data.places import LocalPlaces, Places
from pipeline.spec import Misuse

ENTRY = np.dtype(
    [
        ("offset", "<u8"),  # of the image's bytes in the tar
        ("header", "<u8"),  # of the image's tar header, where its key is written
        ("size", "<u4"),  # bytes of the image
        ("label_start", "<u4"),  # first label in the flat array
        ("crc32c", "<u4"),  # of the image's bytes
        ("num_labels", "<u2"),
        ("width", "<u2"),  # px
        ("height", "<u2"),  # px
    ]
)
LABEL = np.dtype("<i4")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Members of a sample that hold the image, by the part of the name after its first dot."""
HELD_BYTES = 24 << 20
"""Most memory that the indexes read last may take in one process, mapped files aside."""


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name as webdataset does: key up to the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def read_index(path: Path) -> np.ndarray:
    """Memory-map an index; Misuse where it is missing or no array of ENTRY."""
    return map_array(path, ENTRY, "index entries")


def read_labels(path: Path) -> np.ndarray:
    """Memory-map the flat labels (int32); Misuse where they are missing or of another type."""
    return map_array(path, LABEL, "int32 labels")


def read_key(tar: Path, header: int) -> str:
    """Return the key of the member whose header lies at byte `header` of `tar`."""
    with tar.open("rb") as file:
        file.seek(header)
        with tarfile.open(fileobj=file, mode="r:") as members:
            member = members.next()
    assert member is not None
    return split_name(member.name)[0]


class SplitIndex:
    """All entries of one split, by global sample id; opened shard by shard when first needed.

    It may be pickled: a worker process reads the files again.

    Args:
        folder: with the manifest and the indexes; for a URL, its mirror on this node.
        manifest: of the data set.
        split: its name in the manifest.
        places: where the tars are; without, beside their indexes.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, places: Places | None = None
    ) -> None:
        self.folder = Path(folder)
        self.split = split
        self.shards: tuple[Shard, ...] = manifest.split(split).shards
        self.places: Places = places or LocalPlaces(self.folder, self.shards)
        counts = [shard.num_samples for shard in self.shards]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._count = int(self.starts[-1])
        self._forget()

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_held_bytes": 0, "_known": Known()}

    def _forget(self) -> None:
        self._open: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._held_bytes = 0
        self._known = Known()

    def locate(self, sample_id: int) -> tuple[int, int]:
        """Return (shard number, row in its index) of a sample id; IndexError outside the split."""
        if not 0 <= sample_id < self._count:
            raise IndexError(f"sample {sample_id} of split '{self.split}' with {len(self)} samples")
        shard = int(self.starts.searchsorted(sample_id, "right")) - 1
        return shard, int(sample_id - self.starts[shard])

    def tar(self, shard: int) -> Path:
        """Return the path of shard number `shard` beside its index, where it may not have come."""
        return self.folder / self.shards[shard].file

    def entry(self, sample_id: int) -> np.void:
        """Return the ENTRY of a sample."""
        shard, row = self.locate(sample_id)
        return self.arrays(shard)[0][row]

    def labels(self, sample_id: int) -> tuple[int, ...]:
        """Return the class indices of a sample, at least one."""
        shard, row = self.locate(sample_id)
        entries, labels = self.arrays(shard)
        start = int(entries[row]["label_start"])
        return tuple(labels[start : start + int(entries[row]["num_labels"])].tolist())

    def key(self, sample_id: int) -> str:
        """Return the key of a sample, read from the tar."""
        shard, row = self.locate(sample_id)
        tar = self.places.path(shard)
        try:
            return read_key(tar, int(self.arrays(shard)[0][row]["header"]))
        finally:
            self.places.release(shard)

    def arrays(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (entries, flat labels) of shard number `shard`, checked against the manifest.

        Raises:
            Misuse: the index is missing or is not the one that the manifest names.
            ShardGone, Failure: the disk returns errors, or a wrong copy cannot be brought again.
        """
        found = self._open.get(shard)
        if found is None:
            found = self._loaded(shard)
            self._held_bytes += _held_bytes(found)
            while self._held_bytes > HELD_BYTES and self._open:
                self._held_bytes -= _held_bytes(self._open.popitem(last=False)[1])
            self._open[shard] = found
        else:
            self._open.move_to_end(shard)
        return found

    def _loaded(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self._load(shard)
        except Misuse:
            if not self.places.renew_index(shard):
                raise
        return self._load(shard)

    def _load(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        record, known = self.shards[shard], self._known
        path = self.folder / record.index_file
        entries = load_array(path, record.index_sha256, ENTRY, "index entries", known)
        if len(entries) != record.num_samples:
            raise Misuse(
                f"{path}: holds {len(entries)} entries, the manifest says {record.num_samples}; "
                "index the folder again"
            )
        path = self.folder / record.labels_file
        return entries, load_array(path, record.labels_sha256, LABEL, "int32 labels", known)


def _held_bytes(arrays: tuple[np.ndarray, ...]) -> int:
    return sum(array.nbytes for array in arrays if not isinstance(array, np.memmap))
