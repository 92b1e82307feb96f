"""The index beside each shard: where every image lies in the tar, and its labels.

`shard-000000.idx.npy` is an array of `ENTRY`, `shard-000000.lab.npy` one flat int32 array into
which the entries point. Both are memory-mapped, so that a start reads nothing and workers share
pages. A sample's global id counts through the shards of its split in the order of the manifest.
"""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.manifest import Manifest, Shard
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
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Members of a sample that hold the image, by the part of the name after its first dot."""


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name as webdataset does: key up to the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def read_index(path: Path) -> np.ndarray:
    """Memory-map an index; Misuse where it is missing or no array of ENTRY."""
    entries = _map(path)
    if entries.dtype != ENTRY or entries.ndim != 1:
        raise Misuse(f"{path}: holds {entries.dtype}, not index entries; {_REMEDY}")
    return entries


def read_labels(path: Path) -> np.ndarray:
    """Memory-map the flat labels (int32); Misuse where they are missing or of another type."""
    labels = _map(path)
    if labels.dtype != np.dtype("<i4") or labels.ndim != 1:
        raise Misuse(f"{path}: holds {labels.dtype}, not int32 labels; {_REMEDY}")
    return labels


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

    It may be pickled: a worker process opens its own memory maps.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        self.folder = Path(folder)
        self.split = split
        self.shards: tuple[Shard, ...] = manifest.split(split).shards
        counts = [shard.num_samples for shard in self.shards]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._open: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def locate(self, sample_id: int) -> tuple[int, int]:
        """Return (shard number, row in its index) of a sample id; IndexError outside the split."""
        if not 0 <= sample_id < len(self):
            raise IndexError(f"sample {sample_id} of split '{self.split}' with {len(self)} samples")
        shard = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        return shard, int(sample_id - self.starts[shard])

    def tar(self, shard: int) -> Path:
        """Return the path of shard number `shard`."""
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
        return read_key(self.tar(shard), int(self.arrays(shard)[0][row]["header"]))

    def arrays(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (entries, flat labels) of shard number `shard`, checked against the manifest.

        Raises:
            Misuse: the index is missing or is not the one that the manifest names.
        """
        if shard not in self._open:
            record = self.shards[shard]
            index, labels = self.folder / record.index_file, self.folder / record.labels_file
            _check_digest(index, record.index_sha256)
            _check_digest(labels, record.labels_sha256)
            self._open[shard] = (read_index(index), read_labels(labels))
            assert len(self._open[shard][0]) == record.num_samples
        return self._open[shard]


_REMEDY = "run `python -m data_prep verify` on its folder, then build or index it again"


def _check_digest(path: Path, sha256: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Misuse(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    if found != sha256:
        raise Misuse(f"{path}: its sha256 differs from the manifest's; {_REMEDY}")


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Misuse(f"{path}: cannot be read as an index ({error}); {_REMEDY}") from None
