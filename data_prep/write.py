"""Second pass: one shard, its index and its record, each either whole or absent.

A task is a split and a number: a worker opens population, verdicts and arrangement itself. The tar
is written under another name, synced, renamed; its index follows from what was written where. The
record in the work folder comes last; a shard with a matching record and matching digests is kept
when a build is run again.
"""

import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import google_crc32c
import numpy as np

from data_prep.arrange import Arranged
from data_prep.catalogue import Reader
from data_prep.checking import Checked, load_checked, stored
from data_prep.failure import Failed, naming_full_disk
from data_prep.judging import SUFFIXES
from data_prep.population import Population
from data_prep.tar import printable
from data_prep.tarwrite import TarWriter, Written
from pipeline.data.index import ENTRY
from pipeline.data.manifest import Shard
from pipeline.run.files import read_json, sync_folder, write_atomically, write_json

WINDOW_BYTES = 32 << 20
"""Of images in memory at a time, however large a shard is."""
_MAX_WORDS = 64
"""Characters of a file's name in a key."""
_AT_ONCE_BYTES = 1 << 20
_AGAIN = "leave the source alone and build again into an empty folder"


class Work(NamedTuple):
    """What the stages before have left in the work folder."""

    population: Population
    checked: Checked
    arranged: Arranged


class ShardTask(NamedTuple):
    """One shard to write: all its bytes follow from the work folder, whose state is `key`."""

    out: Path
    work: Path
    key: str
    split: str
    number: int
    left_bytes: int = 0
    """What this and all later shards still need on the disk."""

    @property
    def file(self) -> str:
        """Return the path of the tar, relative to OUT."""
        return f"{self.split}/shard-{self.number:06d}.tar"

    @property
    def record(self) -> Path:
        """Return the file that vouches for the shard."""
        return self.work / "shards" / f"{self.split}-{self.number:06d}.json"


class Placed(Protocol):
    """Anything that knows where in a tar an image lies."""

    @property
    def header(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...


@functools.lru_cache(maxsize=1)
def open_work(work: Path, key: str) -> Work:
    """Open the work folder; `key` is that of its arrangement, so that another one is read anew."""
    population = Population(work / "population")
    opened = Work(population, load_checked(population, work), Arranged(work))
    if opened.arranged.key != key:
        raise Failed(f"{work}: arranged anew while shards were written; run the command again")
    return opened


def write_shard(task: ShardTask) -> tuple[Shard, bool]:
    """Write a shard, or keep the finished one; tells which (true: kept).

    Raises:
        Failed: the disk is full, or a source image changed since it was checked.
    """
    kept = read_record(task)
    if kept is not None and _is_whole(task.out, kept):
        return kept, True
    path = task.out / task.file
    with naming_full_disk(path, task.left_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        task.record.parent.mkdir(parents=True, exist_ok=True)
        shard = _write(task, path)
        write_json(task.record, {"key": task.key, "shard": shard.model_dump()})
    return shard, False


def read_record(task: ShardTask) -> Shard | None:
    """Return what was written for a task; None where it is not done, or from another state."""
    saved = read_json(task.record)
    if not isinstance(saved, dict) or saved.get("key") != task.key:
        return None
    return Shard.parse(saved["shard"], str(task.record))


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def index_entries(
    places: Sequence[Placed], num_labels: Sequence[int], crc32c: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Return the (N,) ENTRY of the samples of a tar.

    Args:
        places: where each image lies in the tar.
        num_labels: of each sample.
        crc32c: (N,) of each image's bytes.
        sizes: (N, 2) width and height, px.
    """
    entries = np.zeros(len(places), ENTRY)
    for name in ("offset", "header", "size"):
        entries[name] = [getattr(place, name) for place in places]
    entries["num_labels"] = num_labels
    entries["label_start"] = np.cumsum(num_labels) - num_labels
    entries["crc32c"] = crc32c
    entries["width"], entries["height"] = sizes[:, 0], sizes[:, 1]
    return entries


def write_index(
    folder: Path, file: str, entries: np.ndarray, labels: Sequence[tuple[int, ...]], sha256: str
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


def key_of(position: int, name: str) -> str:
    """Return a key that is unique in the split and tells the file: 00000017-cat-0001."""
    shown = printable(name)
    stem = shown.rpartition(".")[0] or shown
    return f"{position:08d}-{re.sub(r'[^A-Za-z0-9_]+', '-', stem)[-_MAX_WORDS:].strip('-')}"


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _is_whole(out: Path, shard: Shard) -> bool:
    files = (shard.file, shard.index_file, shard.labels_file)
    digests = (shard.sha256, shard.index_sha256, shard.labels_sha256)
    try:
        return all(sha256_of(out / f) == d for f, d in zip(files, digests, strict=True))
    except FileNotFoundError:
        return False


def _write(task: ShardTask, path: Path) -> Shard:
    work = open_work(task.work, task.key)
    cuts = work.arranged.cuts(task.split)
    first, end = int(cuts[task.number]), int(cuts[task.number + 1])
    rows = np.array(work.arranged.order(task.split)[first:end])
    labels = work.arranged.labels_of(work.population, rows)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb", _AT_ONCE_BYTES) as file:
            writer = TarWriter(file)
            places = _write_samples(writer, work, first, rows, labels)
            sha256 = writer.finish()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    verdicts = work.checked.verdicts[rows]
    sizes = np.stack([verdicts["width"], verdicts["height"]], axis=1)
    counts = [len(its) for its in labels]
    entries = index_entries(places, counts, verdicts["crc32c"], sizes)
    return write_index(task.out, task.file, entries, labels, sha256)


def _write_samples(
    writer: TarWriter, work: Work, first: int, rows: np.ndarray, labels: list[tuple[int, ...]]
) -> list[Written]:
    """Append all samples, their members sorted by suffix; returns where their images lie."""
    suffixes = work.checked.verdicts["suffix"][rows].tolist()
    classes = work.arranged.labels.classes
    places = []
    for number, (row, image) in enumerate(zip(rows.tolist(), _images(work, rows), strict=True)):
        key, its = key_of(first + number, work.population.name(row)), labels[number]
        writer.add(f"{key}.cls", str(its[0]).encode())
        if len(its) == 1:
            places.append(writer.add(f"{key}.{SUFFIXES[suffixes[number]]}", image))
            continue
        several = {"labels": its, "classes": [classes[label] for label in its]}
        members = {SUFFIXES[suffixes[number]]: image, "json": json.dumps(several).encode()}
        written = {name: writer.add(f"{key}.{name}", members[name]) for name in sorted(members)}
        places.append(written[SUFFIXES[suffixes[number]]])
    return places


def _images(work: Work, rows: np.ndarray) -> Iterator[bytes]:
    """Yield the images of rows in this order, of which a window is in memory at a time."""
    reader = Reader(work.population.containers)
    try:
        for start, end in windows(work.checked.verdicts["size"][rows]):
            images = _read_window(reader, work, rows[start:end])
            images.reverse()
            while images:  # none is kept while the next window is read
                yield images.pop()
    finally:
        reader.close()
        work.checked.close()


def windows(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of successive images of WINDOW_BYTES together, or of one larger one."""
    ends = np.cumsum(sizes, dtype=np.int64)
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, before + WINDOW_BYTES, side="right"))
        end = max(fitting, start + 1)
        yield start, end
        start = end


def _read_window(reader: Reader, work: Work, rows: np.ndarray) -> list[bytes]:
    """Read images in the order of the sources, which spares the disk; they come as in `rows`."""
    images = [b""] * len(rows)
    expected = work.checked.verdicts["crc32c"][rows]
    for number in np.argsort(rows).tolist():
        row = int(rows[number])
        images[number] = _read(reader, work, row)
        if google_crc32c.value(images[number]) != int(expected[number]):
            raise Failed(f"{_shown(work, row)} changed while shards were built from it; {_AGAIN}")
    return images


def _read(reader: Reader, work: Work, row: int) -> bytes:
    try:
        return stored(reader, work.population, work.checked, row)
    except OSError as error:
        raise Failed(
            f"{_shown(work, row)} can no longer be read ({error.strerror}); {_AGAIN}"
        ) from None


def _shown(work: Work, row: int) -> str:
    place = work.population.place(row)
    return f"{work.population.containers[place.container]['path']}: '{printable(place.name)}'"
