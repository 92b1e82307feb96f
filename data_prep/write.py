"""Second pass: one shard, its index and its record, each either whole or absent.

The tar is written by webdataset's writer into a file of another name, synced, renamed, walked
again for the index. The record in the work folder comes last; a shard with a matching record and
matching digests is kept when a build is run again. Bytes depend on the task alone.
"""

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from data_prep.checking import fetch
from data_prep.clean import REPAIRED
from data_prep.failure import Failed, naming_full_disk
from data_prep.samples import Sample, scan
from data_prep.sources import Place, Reader
from pipeline.data.index import ENTRY
from pipeline.data.manifest import Shard
from pipeline.run.files import read_json, sync_folder, write_atomically, write_json

WORK = ".build"
"""Folder inside OUT for what an unfinished build knows."""


@dataclass(frozen=True)
class ShardTask:
    """All that one shard's bytes follow from; lists run over its samples, in order."""

    out: Path
    file: str
    record: Path
    root: Path
    places: list[Place]
    verdicts: np.ndarray
    keys: list[str]
    labels: list[tuple[int, ...]]
    classes: list[list[str]]
    """Class names of samples with several labels, else empty."""
    left_bytes: int
    """What this and all later shards still need on the disk."""

    def digest(self) -> str:
        """Return the sha256 of what the bytes follow from."""
        state = hashlib.sha256(self.verdicts.tobytes())
        for sample in zip(self.keys, self.labels, self.classes, strict=True):
            state.update(json.dumps(sample).encode())
        return state.hexdigest()


def write_shard(task: ShardTask) -> tuple[Shard, bool]:
    """Write a shard, or keep the finished one; tells which (true: kept).

    Raises:
        Failed: the disk is full, or a source image changed since it was checked.
    """
    kept = _finished(task)
    if kept is not None:
        return kept, True
    path = task.out / task.file
    with naming_full_disk(path, task.left_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        shard = _write(task, path)
        write_json(task.record, {"digest": task.digest(), "shard": shard.model_dump()})
    return shard, False


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def index_entries(
    samples: list[Sample], num_labels: list[int], crc32c: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Return the (N,) ENTRY of the samples of a tar.

    Args:
        samples: as `scan` found them in the finished tar, so that the index tells what is there.
        num_labels: of each sample.
        crc32c: (N,) of each image's bytes.
        sizes: (N, 2) width and height, px.
    """
    entries = np.zeros(len(samples), ENTRY)
    for name in ("offset", "header", "size"):
        entries[name] = [getattr(sample, name) for sample in samples]
    entries["num_labels"] = num_labels
    entries["label_start"] = np.cumsum(num_labels) - num_labels
    entries["crc32c"] = crc32c
    entries["width"], entries["height"] = sizes[:, 0], sizes[:, 1]
    return entries


def write_index(
    folder: Path, file: str, entries: np.ndarray, labels: list[tuple[int, ...]], sha256: str
) -> Shard:
    """Write the index of the tar `folder/file`, whose digest is `sha256`; the shard's record.

    Raises:
        Misuse: the name of the tar is not plain.
    """
    flat = np.array([label for its in labels for label in its], dtype="<i4")
    index, label_bytes = _npy(entries), _npy(flat)
    values = {
        "file": file,
        "num_samples": len(entries),
        "num_bytes": (folder / file).stat().st_size,
        "sha256": sha256,
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "labels_sha256": hashlib.sha256(label_bytes).hexdigest(),
    }
    shard = Shard.parse(values, str(folder / file))
    write_atomically(folder / shard.index_file, index)
    write_atomically(folder / shard.labels_file, label_bytes)
    return shard


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _finished(task: ShardTask) -> Shard | None:
    saved = read_json(task.record)
    if not isinstance(saved, dict) or saved.get("digest") != task.digest():
        return None
    shard = Shard.parse(saved["shard"], str(task.record))
    files = (shard.file, shard.index_file, shard.labels_file)
    digests = (shard.sha256, shard.index_sha256, shard.labels_sha256)
    try:
        same = [sha256_of(task.out / f) == d for f, d in zip(files, digests, strict=True)]
    except FileNotFoundError:
        return None
    return shard if all(same) else None


def _write(task: ShardTask, path: Path) -> Shard:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write_tar(task, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    samples = scan(path)
    assert [sample.key for sample in samples] == task.keys, f"{path}: not what was to be written"
    sizes = np.stack([task.verdicts["width"], task.verdicts["height"]], axis=1)
    counts = [len(its) for its in task.labels]
    entries = index_entries(samples, counts, task.verdicts["crc32c"], sizes)
    return write_index(task.out, task.file, entries, task.labels, sha256_of(path))


def _write_tar(task: ShardTask, path: Path) -> None:
    os.environ["WDS_SECURE"] = "1"
    from webdataset.writer import TarWriter

    images = _read_all(task)
    with path.open("wb") as file:
        with TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
            for row, image in enumerate(images):
                sample = {"__key__": task.keys[row], "jpg": image}
                sample["cls"] = str(task.labels[row][0]).encode()
                if len(task.labels[row]) > 1:
                    several = {"labels": task.labels[row], "classes": task.classes[row]}
                    sample["json"] = json.dumps(several).encode()
                writer.write(sample)
        file.flush()
        os.fsync(file.fileno())


def _read_all(task: ShardTask) -> list[bytes]:
    """Read the images of a shard in the order of the source, which spares the disk."""
    reader = Reader(task.root)
    images = [b""] * len(task.places)
    for row in sorted(range(len(images)), key=lambda row: _on_disk(task.places[row])):
        place = task.places[row]
        repaired = task.verdicts["state"][row] == REPAIRED
        images[row] = fetch(reader, place).stored if repaired else _read(reader, place)
        if google_crc32c.value(images[row]) != int(task.verdicts["crc32c"][row]):
            raise Failed(
                f"{task.root}: '{place.name}' changed while shards were built from it; leave the "
                "source alone and build again into an empty folder"
            )
    reader.close()
    return images


def _on_disk(place: Place) -> tuple[str, int, str]:
    return place.tar, place.offset, place.name


def _read(reader: Reader, place: Place) -> bytes:
    """Read an image that was found good; nothing where it is gone, which its crc32c tells."""
    try:
        return reader.read(place)
    except FileNotFoundError:
        return b""
