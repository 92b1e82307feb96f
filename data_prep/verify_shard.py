"""One shard against its index and the manifest; what is wrong is said by key."""

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from data_prep.clean import REJECTED, CleanRules, check
from data_prep.samples import Label, Sample, Scan, scan
from data_prep.tar import walk
from data_prep.write import sha256_of
from pipeline.data.index import read_index, read_key, read_labels
from pipeline.data.manifest import Shard, load_manifest
from pipeline.spec import Misuse

MAX_PROBLEMS = 20
"""So many of one kind are listed for a shard; one that was replaced would list thousands."""
_PLACE = ["offset", "header", "size", "crc32c"]
_WHERE = ["offset", "header", "size", "label_start", "num_labels"]


class Task(NamedTuple):
    """One shard to check."""

    folder: Path
    number: int
    shard: Shard
    num_classes: int
    rejected: tuple[str, ...]
    """Keys that `index` left out."""
    foreign: bool
    """Whether the tar was made by others, so that it may hold what belongs to no sample."""
    interleaved: bool
    label_field: str
    decode: CleanRules | None
    """By which rules to decode every image, if that is wished."""

    @property
    def tar(self) -> Path:
        """Return the path of the shard."""
        return self.folder / self.shard.file


class Checked(NamedTuple):
    """What was found: `keys` (n,) are hashes, `class_counts` is empty where nothing was read."""

    number: int
    problems: list[str]
    num_samples: int = 0
    num_image_bytes: int = 0
    keys: np.ndarray = np.zeros(0, np.uint64)
    class_counts: np.ndarray = np.zeros(0, np.int64)


def check_shard(task: Task) -> Checked:
    """Check a shard; damage never raises."""
    shard = task.shard
    paths = [task.folder / file for file in (shard.file, shard.index_file, shard.labels_file)]
    gone = [path for path in paths if not path.is_file()]
    if gone:
        problems = [f"{path}: is missing; build or get the set again" for path in gone]
        return Checked(task.number, problems)
    try:
        return _check(task, paths[1], paths[2])
    except OSError as error:
        problem = f"{task.tar}: cannot be read: {error.strerror} ({error.filename})"
        return Checked(task.number, [problem])


def _check(task: Task, index: Path, labels: Path) -> Checked:
    problems = _index_problems(task, index, labels)
    found, scan_problems = _scan(task)
    told: Iterable[str] = ()
    num_image_bytes, counts = 0, np.zeros(0, np.int64)
    if not problems:
        entries, flat = read_index(index), read_labels(labels)
        num_image_bytes = int(entries["size"].sum(dtype=np.int64))
        counts = np.bincount(flat, minlength=task.num_classes)
        problems += _first(_image_problems(task, entries, found.samples))
        told = () if scan_problems else _differences(task, entries, flat, found.samples)
    problems += _first(scan_problems)
    problems += _first(told)
    if sha256_of(task.tar) != task.shard.sha256:
        problems += [] if problems else _first(_dirty_padding(task.tar))
        problems += [] if problems else [f"{task.tar}: damaged outside of images and labels"]
        problems.append(f"{task.tar}: sha256 differs from the manifest's")
    keys = np.array([_hash(sample.key) for sample in found.samples], np.uint64)
    return Checked(task.number, problems, task.shard.num_samples, num_image_bytes, keys, counts)


def _first(problems: Iterable[str]) -> list[str]:
    """Return the first problems, and a line for the others."""
    rest = iter(problems)
    listed = list(islice(rest, MAX_PROBLEMS))
    more = sum(1 for _ in rest)
    return [*listed, f"... and {more:,} more of this kind in this shard"] if more else listed


def _index_problems(task: Task, index: Path, labels: Path) -> list[str]:
    """Check the index by itself; nothing in it is used unless all is right."""
    digests = ((index, task.shard.index_sha256), (labels, task.shard.labels_sha256))
    for path, sha256 in digests:
        if sha256_of(path) != sha256:
            return [f"{path}: sha256 differs from the manifest's; the index is damaged"]
    try:
        entries, flat = read_index(index), read_labels(labels)
    except Misuse as error:
        return [str(error)]
    if len(entries) != task.shard.num_samples:
        return [f"{index}: has {len(entries)} samples, the manifest {task.shard.num_samples}"]
    starts = entries["label_start"].astype(np.int64)
    if len(entries) and int((starts + entries["num_labels"]).max()) > len(flat):
        return [f"{index}: points at more labels than the {len(flat)} of {labels.name}"]
    if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < task.num_classes:
        return [
            f"{labels}: has labels {flat.min()} to {flat.max()}, but there are {task.num_classes} "
            "classes"
        ]
    return []


def _scan(task: Task) -> tuple[Scan, list[str]]:
    """Walk the tar; returns its samples without those that `index` rejected."""
    try:
        found = scan(task.tar, task.label_field)
    except Misuse as error:
        return Scan([], [], "", []), [str(error)]
    rejected = frozenset(task.rejected)
    found = found._replace(samples=[s for s in found.samples if s.key not in rejected])
    problems = [
        f"{task.tar}: key '{note.file}': {note.reason}"
        for note in found.broken
        if note.file not in rejected
    ]
    if found.apart and not task.interleaved:
        problems.append(
            f"{task.tar}: key '{found.apart}' comes again after other keys (interleaved or double)"
        )
    if not task.foreign:
        problems += [f"{task.tar}: member '{name}' is of no sample" for name in found.strangers]
    return found, problems


def _image_problems(task: Task, entries: np.ndarray, samples: list[Sample]) -> Iterator[str]:
    """Check the bytes of each image against its crc32c and, if wished, decode them."""
    keys = {sample.header: sample.key for sample in samples}
    num_bytes = task.tar.stat().st_size
    handle = os.open(task.tar, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset, header, size, crc32c in entries[_PLACE].tolist():
            data = os.pread(handle, min(size, num_bytes), offset)
            problem = ""
            if google_crc32c.value(data) != crc32c:
                problem = "the image is damaged (crc32c differs)"
            elif task.decode and (verdict := check(data, task.decode)).state == REJECTED:
                problem = "; ".join(reason for _, reason in verdict.notes)
            if problem:
                key = keys.get(header) or _key(task.tar, header)
                yield f"{task.tar}: key '{key}': {problem}"
    finally:
        os.close(handle)


def _key(tar: Path, header: int) -> str:
    try:
        return read_key(tar, header)
    except Exception:  # a damaged header can make tarfile raise anything
        return f"(unreadable header at byte {header})"


def _differences(
    task: Task, entries: np.ndarray, flat: np.ndarray, samples: list[Sample]
) -> Iterator[str]:
    """Compare what the index says with what the tar says."""
    tar = task.tar
    if len(entries) != len(samples):
        yield f"{tar}: has {len(samples)} samples, its index {len(entries)}"
        indexed = set(entries["header"].tolist())
        for sample in samples:
            if sample.header not in indexed:
                yield f"{tar}: key '{sample.key}': is not in the index"
        return
    for entry, sample in zip(entries[_WHERE].tolist(), samples, strict=True):
        offset, header, size, start, count = entry
        if (offset, header, size) != (sample.offset, sample.header, sample.size):
            yield f"{tar}: key '{sample.key}': lies elsewhere than its index says"
        indexed = tuple(flat[start : start + count].tolist())
        told = tuple(_index_of(task.folder, label) for label in sample.labels)
        if indexed != told:
            yield f"{tar}: key '{sample.key}': labels {told}, but its index has {indexed}"


def _index_of(folder: Path, label: Label) -> int:
    return label if isinstance(label, int) else _numbers(folder).get(label, -1)


@functools.lru_cache(maxsize=1)
def _numbers(folder: Path) -> dict[str, int]:
    """Return the index of each class; only tars with class names need it, so no task carries it."""
    classes = load_manifest(folder).labels.classes
    return {name: number for number, name in enumerate(classes)}


def _dirty_padding(tar: Path) -> Iterator[str]:
    """Name the members whose padding is not zero."""
    with tar.open("rb") as file:
        for member in walk(tar):
            file.seek(member.offset + member.size)
            if file.read(-member.size % 512).strip(b"\0"):
                yield f"{tar}: member '{member.name}': damaged padding"


def _hash(key: str) -> int:
    """Return 64 bits that stand for a key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
