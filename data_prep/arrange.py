"""Which image goes where: duplicates, held-out images, order and shards, decided once.

Everything follows from the names of the files, the verdicts and the seed; the number of workers
never enters. The result lies in WORK, and every process maps it: arranged.json, for each split
order-SPLIT.npy, several.npy for images with several labels, and dropped.jsonl.
"""

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.catalogue import Note
from data_prep.checking import Checked, key_of
from data_prep.clean import REJECTED
from data_prep.duplicates import OUT
from data_prep.holdout import check_holdouts, first_by_name, in_order, lowest, per_class
from data_prep.options import BuildSpec, Hold
from data_prep.order import ORDER, ranks
from data_prep.pool import Progress
from data_prep.population import EVAL, TRAIN, Population
from data_prep.weeding import (
    DROPPED,
    DROPPED_FILE,
    NOTED,
    Field,
    Weeded,
    count_shared,
    read_notes,
    weed,
)
from pipeline.data.labels import LabelSpace, name_of
from pipeline.run.files import read_json, sync_folder, write_json
from pipeline.spec import Misuse, canonical_json

_TAR_BYTES = 512 + 1024  # the image's header, and header and block of the label
_BLOCK_ROWS = 1 << 16
_FILE = "arranged.json"
_SEVERAL = "several.npy"

Draw = Callable[[np.ndarray, str], np.ndarray]
"""(rows, purpose) -> their ranks."""


class Arranged:
    """What `arrange` decided, memory-mapped; cheap to open in every process."""

    def __init__(self, work: Path) -> None:
        about = read_json(work / _FILE)
        if not isinstance(about, dict):
            raise Misuse(f"{work}: the images are not arranged yet; run stage arrange first")
        if damaged := _damaged(work, about):
            raise Misuse(
                f"{damaged}: cut or gone since it was written; run the same command again from "
                "stage arrange, which writes it anew"
            )
        self._work, self._about = work, about
        self.key: str = about["key"]
        """Changes when anything does that the shards follow from."""
        self.labels = LabelSpace.parse(about["labels"], str(work / _FILE))
        self.splits: tuple[str, ...] = tuple(about["splits"])
        """Splits with images, train first, then by name."""
        self.empty: tuple[str, ...] = tuple(about["empty"])
        """Classes of the label space without an image in train."""
        self.merged: int = about["merged"]
        """Images that became a label of their twin's sample."""
        self.leaks: int = about["leaks"]
        """Train images that were dropped because a held-out split has them."""
        self.eval_twins: int = about["eval_twins"]
        """Images of eval with a byte-identical twin in train, after all."""
        self._several = np.load(work / _SEVERAL, mmap_mode="r").view(np.ndarray)
        self._several_rows = np.ascontiguousarray(self._several["row"])

    def order(self, split: str) -> np.ndarray:
        """Return (n,) uint32, memory-mapped: the rows of the population, in final order."""
        return np.load(_order_file(self._work, split), mmap_mode="r").view(np.ndarray)

    def cuts(self, split: str) -> np.ndarray:
        """Return (shards + 1,) int64: shard s holds positions cuts[s]..cuts[s + 1] of `order`."""
        return np.array(self._about["splits"][split]["cuts"], np.int64)

    def class_counts(self, split: str) -> tuple[int, ...]:
        """Return the images of each class; one with several labels counts for each."""
        return tuple(self._about["splits"][split]["class_counts"])

    def labels_of(self, population: Population, rows: np.ndarray) -> list[tuple[int, ...]]:
        """Return the label indices of these rows of the population, ascending, at least one."""
        rows = np.asarray(rows, np.uint32)
        starts = np.searchsorted(self._several_rows, rows, side="left").tolist()
        ends = np.searchsorted(self._several_rows, rows, side="right").tolist()
        own = population.rows["cls"][rows].tolist()
        labels = self._several["label"]
        return [
            tuple(labels[start:end].tolist()) if end > start else (cls,)
            for cls, start, end in zip(own, starts, ends, strict=True)
        ]

    def dropped(self) -> Iterator[Note]:
        """Yield the good images that were left out or merged, and for which other image."""
        return read_notes(self._work, DROPPED)

    def noted(self) -> Iterator[Note]:
        """Yield the near duplicates that are kept."""
        return read_notes(self._work, NOTED)


def arrange(population: Population, checked: Checked, spec: BuildSpec, work: Path) -> Arranged:
    """Decide where every good image goes; what was decided before for the same is kept.

    Raises:
        Misuse: a class has no image, a holdout takes none, another data set does not compare, the
            images were checked with other options, or nothing is left to train on.
    """
    causes = [checked.key, spec.digest(), population.classes, population.display]
    key = hashlib.sha256(canonical_json(causes).encode()).hexdigest()
    saved = read_json(work / _FILE)
    if isinstance(saved, dict) and saved.get("key") == key and not _damaged(work, saved):
        return Arranged(work)
    (work / _FILE).unlink(missing_ok=True)
    if checked.key != key_of(population, spec, work):
        raise Misuse(f"{work}: the images were checked with other options; run stage check again")
    field = _field(population, checked, spec)
    weeded = weed(field, spec, work)
    counts = _num_train(field)
    with Progress("arrange", "images") as progress:
        draw = functools.partial(_draw, population, spec.seed, progress)
        for split, hold in in_order(spec.holdouts):
            _hold_out(field, split, hold, counts, draw)
        if spec.per_class is not None:
            _limit(field, spec.per_class, draw)
        splits = _write_orders(field, weeded.several, spec, draw, work)
    about = {
        "key": key,
        "splits": splits,
        "files": {path.name: path.stat().st_size for path in _files(work, splits)},
        "labels": _label_space(population, spec).model_dump(mode="json"),
        "empty": _check_filled(population, splits, spec),
        "merged": weeded.merged,
        "leaks": weeded.leaks,
        "eval_twins": _count_twins(field, weeded),
    }
    sync_folder(work)
    write_json(work / _FILE, about)
    return Arranged(work)


def shard_cuts(sizes: np.ndarray, spec: BuildSpec) -> np.ndarray:
    """Return (shards + 1,) positions where shards begin and end; sizes are image bytes in order."""
    if spec.shard_samples is not None:
        return np.append(np.arange(0, len(sizes), spec.shard_samples), len(sizes))
    in_tar = sizes.astype(np.int64)
    in_tar += 511
    in_tar //= 512
    in_tar *= 512
    in_tar += _TAR_BYTES
    before = np.cumsum(in_tar)
    before -= in_tar
    before //= max(int(spec.shard_mb * 1e6), 1)
    return np.concatenate([[0], np.flatnonzero(before[1:] != before[:-1]) + 1, [len(sizes)]])


def _field(population: Population, checked: Checked, spec: BuildSpec) -> Field:
    check_holdouts(spec.holdouts, population.splits)
    splits = [*population.splits, *(split for split, _ in in_order(spec.holdouts))]
    side = np.array(population.rows["split"])
    side[checked.verdicts["state"] == REJECTED] = OUT
    return Field(population, checked, splits, side)


def _in_split(field: Field, split: str) -> np.ndarray:
    """Return the rows of a split, ascending."""
    if split not in field.splits:
        return np.zeros(0, np.uint32)
    return np.flatnonzero(field.side == field.splits.index(split)).astype(np.uint32)


def _num_train(field: Field) -> np.ndarray:
    """Return the train images of each class."""
    classes = field.population.rows["cls"][_in_split(field, TRAIN)]
    return np.bincount(classes, minlength=len(field.population.classes))


def _hold_out(field: Field, split: str, hold: Hold, counts: np.ndarray, draw: Draw) -> None:
    """Move to a split what a rule takes; `counts` are those of train before any holdout."""
    take = per_class(hold, counts, _num_train(field))
    rows = _in_split(field, TRAIN)
    classes = field.population.rows["cls"][rows]
    if not take.any():
        rule = " ".join(f"{k} {v}" for k, v in hold.model_dump(exclude_none=True).items())
        raise Misuse(
            f"--holdout {split}={rule}: that holds out none of {len(rows)} images without "
            "emptying a class; raise it, or give --eval-source or no holdout"
        )
    if hold.first is not None:
        chosen = first_by_name(classes, lambda n: field.population.name(int(rows[n])), take)
    else:
        purpose = "holdout" if split == EVAL else f"holdout {split}"
        chosen = lowest(classes, draw(rows, purpose), take)
    field.side[rows[chosen]] = field.splits.index(split)


def _limit(field: Field, limit: int, draw: Draw) -> None:
    rows = _in_split(field, TRAIN)
    classes = field.population.rows["cls"][rows]
    take = np.full(len(field.population.classes), limit)
    chosen = lowest(classes, draw(rows, "per class"), take)
    field.side[rows] = OUT
    field.side[rows[chosen]] = field.splits.index(TRAIN)


def _draw(
    population: Population, seed: int, progress: Progress, rows: np.ndarray, purpose: str
) -> np.ndarray:
    """Return the ranks (n,) uint64 of the names of rows: the same wherever the source lies."""
    found = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS].tolist()
        found[start : start + len(block)] = ranks(map(population.name, block), seed, purpose)
        progress.add(len(block))
    return found


def _write_orders(
    field: Field, several: np.ndarray, spec: BuildSpec, draw: Draw, work: Path
) -> dict[str, dict[str, list[int]]]:
    """Put the images of each split in their final order; returns its shards' cuts and counts."""
    splits = {}
    for split in sorted(field.splits, key=lambda name: (name != TRAIN, name)):
        rows = _in_split(field, split)
        if len(rows):
            rows = rows[np.argsort(draw(rows, ORDER), kind="stable")]
            _save(_order_file(work, split), rows)
            cuts = shard_cuts(field.checked.verdicts["size"][rows], spec)
            counts = _counts(field, several, rows)
            splits[split] = {"cuts": cuts.tolist(), "class_counts": counts.tolist()}
    _save(work / _SEVERAL, several)
    return splits


def _counts(field: Field, several: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the images of each class among the rows of a split; SEVERAL labels count for each."""
    num_classes = len(field.population.classes)
    cls = field.population.rows["cls"]
    its = several[field.side[several["row"]] == field.side[rows[0]]]
    counts = np.bincount(cls[rows], minlength=num_classes)
    counts -= np.bincount(cls[np.unique(its["row"])], minlength=num_classes)
    return counts + np.bincount(its["label"], minlength=num_classes)


def _label_space(population: Population, spec: BuildSpec) -> LabelSpace:
    classes, display = tuple(population.classes), tuple(population.display)
    return LabelSpace(name=name_of(classes) or spec.name, classes=classes, display=display)


def _check_filled(
    population: Population, splits: Mapping[str, Mapping[str, list[int]]], spec: BuildSpec
) -> list[str]:
    """Return the classes without an image to train on; refuse them where they are a mistake.

    A published label space may well have classes that a release lacks: those are said, not refused.
    """
    if TRAIN not in splits:
        raise Misuse(f"{spec.name}: no good image to train on is left; see --split and --classes")
    counts = splits[TRAIN]["class_counts"]
    empty = [name for name, n in zip(population.classes, counts, strict=True) if not n]
    if empty and not (spec.allow_empty or spec.label_space):
        raise Misuse(
            f"class '{empty[0]}' has no usable image to train on ({len(empty)} such classes); add "
            "images or remove its folder, or keep the class in the label space with --allow-empty"
        )
    if empty:
        some = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
        print(
            f"{len(empty):,} of {len(population.classes):,} classes have no image to train on: "
            f"{some}",
            file=sys.stderr,
        )
    return empty


def _count_twins(field: Field, weeded: Weeded) -> int:
    if not {TRAIN, EVAL} <= set(field.splits):
        return 0
    train, held = (field.splits.index(split) for split in (TRAIN, EVAL))
    return count_shared(weeded.twins, field.side, held, train)


def _files(work: Path, splits: Iterable[str]) -> list[Path]:
    orders = [_order_file(work, split) for split in splits]
    return [*orders, work / _SEVERAL, work / DROPPED_FILE]


def _damaged(work: Path, about: Mapping[str, Any]) -> str:
    """Return the first file of an arrangement that is not as long as it was; empty: none.

    One of an older version, which names no files, counts as damaged.
    """
    for name, num_bytes in about.get("files", {_FILE: -1}).items():
        path = work / name
        if not path.is_file() or path.stat().st_size != num_bytes:
            return str(path)
    return ""


def _order_file(work: Path, split: str) -> Path:
    return work / f"order-{split}.npy"


def _save(path: Path, values: np.ndarray) -> None:
    """Write an array whole; arranged.json, which comes after it, makes it count."""
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
