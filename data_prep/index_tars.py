"""`index`: give webdataset tars made by others an index and a manifest, and leave them as they are.

Images are key.jpg, key.jpeg, key.png or key.webp; labels are an index or a class name in key.cls or
in a field of key.json. Headers are read, not pixels: `verify --decode` does. Samples that cannot be
used are listed and left out; many of them stop the work, since then something else is wrong.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.catalogue import Note
from data_prep.failure import naming_full_disk
from data_prep.index_scan import Scanned, Task, scan_tar
from data_prep.index_splits import find_splits, read_info
from data_prep.options import TOOL
from data_prep.pool import Progress, run
from data_prep.population import TRAIN
from data_prep.samples import Label
from data_prep.write import write_index
from pipeline.data.labels import LabelSpace, name_of
from pipeline.data.manifest import INFO, REJECTS, Holdout, Manifest, Notes, Split, save_manifest
from pipeline.run.files import write_atomically
from pipeline.spec import Misuse, canonical_json

MAX_CLASSES = 100_000
"""More are not labels but captions or numbers of something else."""
MAX_REJECTED_SHARE = 0.01


class _Work(NamedTuple):
    folder: Path
    name: str
    label_field: str
    classes: tuple[str, ...]


def index_tars(
    folder: Path,
    globs: dict[str, str],
    classes: tuple[str, ...],
    name: str,
    workers: int,
    label_field: str = "",
) -> Manifest:
    """Write `X.idx.npy` and `X.lab.npy` beside each tar, rejects.jsonl, then the manifest.

    Args:
        folder: where the tars lie.
        globs: split -> pattern of paths below `folder`; empty: see `index_splits.find_splits`.
        classes: names in index order; empty: taken from the labels themselves.
        name: of the data set.
        workers: processes.
        label_field: the field of key.json with the label; empty: see `samples.scan`.

    Raises:
        Misuse: no tars, a manifest is there already, a tar is damaged or breaks the rules of
            `samples.scan`, labels that are not among the classes, over 1 % unusable samples.
        Failed: the disk is full or a worker died.
    """
    splits = find_splits(folder, globs)
    files = [file for its in splits.values() for file in its]
    scanned: dict[str, Scanned] = {}
    total = sum((folder / file).stat().st_size for file in files)
    with Progress("index", "bytes", total) as progress:
        for found in run(scan_tar, (Task(folder, file, label_field) for file in files), workers):
            scanned[found.file] = found
            progress.add(found.num_bytes)
    in_order = [scanned[file] for file in files]
    _check_usable(folder, in_order)
    _check_twins(folder, in_order)
    _check_lengths(folder, scanned)
    work = _Work(folder, name, label_field, classes or _classes_of(folder, in_order))
    _check_labels(work, in_order)
    with naming_full_disk(folder, 40 * sum(len(found.entries) for found in in_order)):
        return _write(work, splits, scanned)


def _write(work: _Work, splits: dict[str, list[str]], scanned: dict[str, Scanned]) -> Manifest:
    known = name_of(work.classes) or work.name
    space = LabelSpace.parse({"name": known, "classes": work.classes}, "label space")
    written = {
        split: _write_split(work, [scanned[file] for file in files], space)
        for split, files in splits.items()
    }
    in_order = [scanned[file] for files in splits.values() for file in files]
    rejected = [note for found in in_order for note in found.rejected]
    sizes = (int(found.entries["size"].sum(dtype=np.int64)) for found in in_order)
    values = {
        "name": work.name,
        "tool": TOOL,
        "holdouts": {split: Holdout(rule="unknown") for split in splits if split != TRAIN},
        "clean": {"label_field": work.label_field},
        "labels": space,
        "splits": written,
        "rejected": Notes.of(rejected),
        "bytes_after": sum(sizes),
        "interleaved": any(found.apart for found in in_order),
        "rejects_sha256": _write_rejects(work.folder, rejected),
    }
    manifest = Manifest.parse(values, str(work.folder))
    save_manifest(work.folder, manifest)
    return manifest


def _write_split(work: _Work, tars: list[Scanned], space: LabelSpace) -> Split:
    where: dict[Label, int] = {label: number for number, label in enumerate(space.classes)}
    counts = np.zeros(len(space), np.int64)
    shards = []
    for found in tars:
        numbers = np.array([_number(label, where) for label in found.vocabulary], np.int64)
        flat = numbers[found.codes]
        counts += np.bincount(flat, minlength=len(space))
        labels = _grouped(flat, found.entries)
        shards.append(write_index(work.folder, found.file, found.entries, labels, found.sha256))
    return Split(shards=tuple(shards), class_counts=tuple(counts.tolist()))


def _grouped(flat: np.ndarray, entries: np.ndarray) -> list[tuple[int, ...]]:
    values = flat.tolist()
    places = entries[["label_start", "num_labels"]].tolist()
    return [tuple(values[start : start + count]) for start, count in places]


def _write_rejects(folder: Path, rejected: list[Note]) -> str:
    """Write the list of samples left out; returns its sha256."""
    lines = (canonical_json({"what": "rejected", **note._asdict()}) + "\n" for note in rejected)
    text = "".join(lines).encode()
    write_atomically(folder / REJECTS, text)
    return hashlib.sha256(text).hexdigest()


def _check_usable(folder: Path, scanned: list[Scanned]) -> None:
    rejected = [note for found in scanned for note in found.rejected]
    total = len(rejected) + sum(len(found.entries) for found in scanned)
    if len(rejected) > MAX_REJECTED_SHARE * total:
        ((kind, _), *_) = counts = Counter(note.kind for note in rejected).most_common()
        why = ", ".join(f"{count:,} {kind}" for kind, count in counts)
        one = next(note for note in rejected if note.kind == kind)
        raise Misuse(
            f"{folder}: {len(rejected):,} of {total:,} samples cannot be used, over "
            f"{MAX_REJECTED_SHARE:.0%} ({why}); {one.file}: {one.reason}; correct --label-field, "
            "or write the shards again without such samples"
        )
    for found in scanned:
        if not len(found.entries):
            raise Misuse(f"{folder / found.file}: holds no usable sample; move it away")


def _check_twins(folder: Path, scanned: list[Scanned]) -> None:
    """Refuse the same tar under two names: its samples would count twice."""
    first: dict[str, str] = {}
    for found in scanned:
        other = first.setdefault(found.sha256, found.file)
        if other != found.file:
            raise Misuse(
                f"{folder / found.file}: the same bytes as {folder / other}; move one of them away"
            )


def _check_lengths(folder: Path, scanned: dict[str, Scanned]) -> None:
    """Compare with what `_info.json` claims: a tar that was cut at a member still reads well."""
    claims = [claim for split in read_info(folder).values() for claim in split.items()]
    for file, claimed in claims:
        found = scanned.get(file)
        count = len(found.entries) + len(found.rejected) if found else claimed
        if count != claimed:
            raise Misuse(
                f"{folder / file}: holds {count} samples, {INFO} says {claimed}; get it again, or "
                f"move {INFO} away where it is outdated and name the splits with --split"
            )


def _classes_of(folder: Path, scanned: list[Scanned]) -> tuple[str, ...]:
    """Derive the classes: sorted names, or numbers from 0 to the largest."""
    found = {label for one in scanned for label in one.vocabulary}
    names = sorted(label for label in found if isinstance(label, str))
    numbers = [label for label in found if isinstance(label, int)]
    if names and numbers:
        raise Misuse(
            f"{folder}: labels are names ('{names[0]}') and numbers ({numbers[0]}) at once; give "
            "the class list with --classes-file"
        )
    count = len(names) or max(numbers) + 1
    if count > MAX_CLASSES:
        raise Misuse(
            f"{folder}: labels make {count:,} classes, over {MAX_CLASSES:,}; they are no classes: "
            "name the field that holds them with --label-field, or give --classes-file"
        )
    return tuple(names) or tuple(str(number) for number in range(count))


def _check_labels(work: _Work, scanned: list[Scanned]) -> None:
    where: dict[Label, int] = {label: number for number, label in enumerate(work.classes)}
    for found in scanned:
        for label in _unknown(found.vocabulary, where):
            raise Misuse(
                f"{work.folder / found.file}: label '{label}' is not among the "
                f"{len(where)} classes; correct --classes-file or --label-field"
            )


def _unknown(vocabulary: tuple[Label, ...], where: dict[Label, int]) -> Iterator[Label]:
    return (label for label in vocabulary if not 0 <= _number(label, where) < len(where))


def _number(label: Label, where: dict[Label, int]) -> int:
    return label if isinstance(label, int) else where.get(label, -1)
