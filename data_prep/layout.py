"""Which image goes where: label space, held-out images, order and shards.

Everything is decided from the names of the files, the verdicts and the seed. An image's rank is a
hash of (seed, purpose, name), so that a new image moves the others little, and the number of
workers nothing.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from data_prep.archive import printable
from data_prep.checking import Checked
from data_prep.classes import EVAL, TRAIN, Placed
from data_prep.clean import REJECTED
from data_prep.options import BuildSpec
from data_prep.sources import Listing
from pipeline.data.labels import LabelSpace
from pipeline.spec import Misuse

_TAR_BYTES = 512 + 1024  # the image's header, and header and block of the label


@dataclass
class Source:
    """One source with all that is known of it; lists run in parallel over its rows."""

    listing: Listing
    placed: Placed
    checked: Checked = field(default_factory=Checked)


@dataclass
class Rows:
    """Good images of a split: `rows` of one source, and their labels (first one decides)."""

    source: int
    rows: np.ndarray
    labels: list[tuple[int, ...]] = field(default_factory=list)

    def take(self, chosen: np.ndarray) -> "Rows":
        """Return the images at positions `chosen`, in that order."""
        labels = [self.labels[i] for i in chosen.tolist()]
        return Rows(self.source, self.rows[chosen], labels)

    def first_labels(self) -> np.ndarray:
        """Return the first label of each image."""
        return np.array([labels[0] for labels in self.labels], dtype=np.int64)


@dataclass
class Layout:
    """The label space and, for each split, its images in their final order."""

    labels: LabelSpace
    splits: dict[str, Rows]
    num_merged: int = 0
    num_twins: int = 0
    """Images of the eval split that have a byte-identical twin in train."""


def lay_out(sources: list[Source], spec: BuildSpec) -> Layout:
    """Decide where every good image goes; the second source, if there is one, is all for eval.

    Raises:
        Misuse: a class has no image, a class was asked for that is not there, or nothing is left.
    """
    space = _label_space(sources, spec)
    splits: dict[str, Rows] = {}
    for number, source in enumerate(sources):
        for split in sorted({split for split in source.placed.splits if split}):
            found = _select(source, number, split, space)
            splits[EVAL if number else split] = found
    num_before = sum(len(rows.rows) for rows in splits.values())
    if spec.merge_duplicates:
        splits = {split: _merge(sources, rows) for split, rows in splits.items()}
    num_merged = num_before - sum(len(rows.rows) for rows in splits.values())
    if spec.holdout:
        splits[TRAIN], splits[EVAL] = _hold_out(sources, splits[TRAIN], spec)
    if spec.per_class is not None:
        splits[TRAIN] = _limit(sources, splits[TRAIN], spec.per_class, spec.seed)
    splits = {split: _shuffle(sources, rows, spec.seed) for split, rows in splits.items()}
    splits = {split: rows for split, rows in splits.items() if len(rows.rows)}
    _check_filled(sources, splits, space, spec)
    return Layout(space, splits, num_merged, _count_twins(sources, splits))


def hold_out(classes: np.ndarray, rank: np.ndarray, fraction: float) -> np.ndarray:
    """Choose exactly round(fraction * N) images, from each class its share within one image.

    A class keeps at least one image. Largest remainders settle the rounding (ties: lower class).

    Args:
        classes: (N,) class of each image.
        rank: (N,) uint64; within a class the lowest are held out.
        fraction: 0 to 1.

    Returns:
        (N,) bool, true for held out.
    """
    counts = np.bincount(classes)
    quota = counts * fraction
    most = np.maximum(counts - 1, 0)
    take = np.minimum(np.floor(quota + 1e-9).astype(np.int64), most)
    missing = round(fraction * len(classes)) - int(take.sum())
    by_remainder = np.argsort(take - quota, kind="stable")
    room = by_remainder[take[by_remainder] < most[by_remainder]]
    take[room[: max(missing, 0)]] += 1
    return _lowest(classes, rank, take)


def _lowest(classes: np.ndarray, rank: np.ndarray, take: np.ndarray) -> np.ndarray:
    """Mark the `take[c]` images of lowest rank in each class c."""
    order = np.lexsort((rank, classes))
    starts = np.concatenate([[0], np.cumsum(np.bincount(classes))])
    ordered = classes[order]
    chosen = np.zeros(len(classes), bool)
    chosen[order[np.arange(len(classes)) - starts[ordered] < take[ordered]]] = True
    return chosen


def shard_numbers(sizes: np.ndarray, spec: BuildSpec) -> np.ndarray:
    """Return for each image, in final order, the number of its shard; sizes are image bytes."""
    if spec.shard_samples is not None:
        return np.arange(len(sizes)) // spec.shard_samples
    in_tar = (sizes.astype(np.int64) + 511) // 512 * 512 + _TAR_BYTES
    before = np.cumsum(in_tar) - in_tar
    numbers = before // max(int(spec.shard_mb * 1e6), 1)
    return np.unique(numbers, return_inverse=True)[1]


def _label_space(sources: list[Source], spec: BuildSpec) -> LabelSpace:
    trained = sources[0].placed
    found = {n for n, s in zip(trained.classes, trained.splits, strict=True) if n and s == TRAIN}
    found |= set(trained.folders)
    classes = tuple(sorted(spec.classes or found))
    if not classes:
        raise Misuse(
            f"{sources[0].listing.root}: no image lies in a class folder or has a WordNet id in "
            "its name; arrange the images as CLASS/name.jpg"
        )
    for source in sources:
        _check_known(source, set(classes))
    names = spec.names or {}
    display = tuple(names.get(name, name) for name in classes) if names else ()
    return LabelSpace(name=spec.name, classes=classes, display=display)


def _check_known(source: Source, classes: set[str]) -> None:
    strangers = {name for name in source.placed.classes if name} - classes
    if strangers:
        raise Misuse(
            f"{source.listing.root}: class '{min(strangers)}' ({len(strangers)} in all) has images "
            "to evaluate on, but no train folder; correct the name or remove its folder"
        )


def _select(source: Source, number: int, split: str, space: LabelSpace) -> Rows:
    where = {name: index for index, name in enumerate(space.classes)}
    rows, labels = [], []
    states = source.checked.verdicts["state"]
    placed = zip(source.placed.splits, source.placed.classes, strict=True)
    for row, (its_split, name) in enumerate(placed):
        if its_split == split and name in where and states[row] != REJECTED:
            rows.append(row)
            labels.append((where[name],))
    return Rows(number, np.array(rows, dtype=np.int64), labels)


def _merge(sources: list[Source], rows: Rows) -> Rows:
    """Keep the first of byte-identical images, with the labels of all."""
    twins = sources[rows.source].checked.verdicts["twin"][rows.rows]
    _, first, group = np.unique(twins, return_index=True, return_inverse=True)
    merged: dict[int, set[int]] = {}
    for position, number in enumerate(group.tolist()):
        merged.setdefault(number, set()).update(rows.labels[position])
    kept = np.sort(first)
    labels = [tuple(sorted(merged[int(group[position])])) for position in kept.tolist()]
    return Rows(rows.source, rows.rows[kept], labels)


def _hold_out(sources: list[Source], rows: Rows, spec: BuildSpec) -> tuple[Rows, Rows]:
    rank = _rank(sources, rows, spec.seed, "holdout")
    held = hold_out(rows.first_labels(), rank, spec.holdout)
    if not held.any():
        raise Misuse(
            f"--holdout is {spec.holdout}: that holds out none of {len(held)} images without "
            "emptying a class; raise it, or give --eval-source or no holdout"
        )
    return rows.take(np.flatnonzero(~held)), rows.take(np.flatnonzero(held))


def _limit(sources: list[Source], rows: Rows, per_class: int, seed: int) -> Rows:
    classes = rows.first_labels()
    take = np.full(int(classes.max(initial=0)) + 1, per_class)
    chosen = _lowest(classes, _rank(sources, rows, seed, "per class"), take)
    return rows.take(np.flatnonzero(chosen))


def _shuffle(sources: list[Source], rows: Rows, seed: int) -> Rows:
    return rows.take(np.argsort(_rank(sources, rows, seed, "order"), kind="stable"))


def _rank(sources: list[Source], rows: Rows, seed: int, purpose: str) -> np.ndarray:
    """Return a uint64 for each image, from its name: the same wherever the source lies."""
    places = sources[rows.source].listing.places
    key = f"{seed} {purpose}".encode()
    ranks = np.empty(len(rows.rows), np.uint64)
    for position, row in enumerate(rows.rows.tolist()):
        name = printable(places[row].name).encode()
        digest = hashlib.blake2b(name, digest_size=8, key=key).digest()
        ranks[position] = int.from_bytes(digest, "little")
    return ranks


def _check_filled(
    sources: list[Source], splits: dict[str, Rows], space: LabelSpace, spec: BuildSpec
) -> None:
    """Name the first class without a single good image to train on, and the remedy."""
    if TRAIN not in splits:
        raise Misuse(f"{sources[0].listing.root}: no good image to train on is left; see --split")
    have = {label for labels in splits[TRAIN].labels for label in labels}
    empty = [name for index, name in enumerate(space.classes) if index not in have]
    if not empty or spec.allow_empty:
        return
    folder = sources[0].listing.root / sources[0].placed.folders.get(empty[0], empty[0])
    raise Misuse(
        f"{folder}: class '{empty[0]}' has no usable image ({len(empty)} such classes); add images "
        "or remove the folder, or keep the class in the label space with --allow-empty"
    )


def _count_twins(sources: list[Source], splits: dict[str, Rows]) -> int:
    if not {TRAIN, EVAL} <= set(splits):
        return 0
    train, held = (
        sources[splits[name].source].checked.verdicts["twin"][splits[name].rows]
        for name in (TRAIN, EVAL)
    )
    return int(np.isin(held, train).sum())
