"""What becomes of images that are the same: kept, merged into one sample, or dropped.

Nothing leaves without a line in WORK/dropped.jsonl that names the image that stays.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from data_prep.against import find_others
from data_prep.catalogue import Note
from data_prep.checking import Checked
from data_prep.duplicates import OUT, Pairs, exact_pairs, leaks, near_duplicates
from data_prep.options import BuildSpec
from data_prep.population import Population
from data_prep.tar import printable

SEVERAL = np.dtype([("row", "<u4"), ("label", "<i4")])
DROPPED, NOTED = "dropped", "noted"
DROPPED_FILE = "dropped.jsonl"


class Field(NamedTuple):
    """The images before they are arranged; `side` changes."""

    population: Population
    checked: Checked
    splits: list[str]
    side: np.ndarray
    """(N,) uint8: number of the split of each image in `splits`, or OUT."""

    def name(self, row: int) -> str:
        """Return the name of an image for people."""
        return printable(self.population.name(row))


@dataclass(frozen=True)
class Weeded:
    """What `weed` did, beside setting `side` of what leaves to OUT."""

    several: np.ndarray
    """(n,) SEVERAL, sorted: all labels of those images that have more than one."""
    merged: int
    """Images that became a label of their twin."""
    leaks: int
    """Train images that left because a held-out split has them."""
    twins: Pairs
    """The byte-identical images that there were, weeded out or not."""


def weed(field: Field, spec: BuildSpec, work: Path) -> Weeded:
    """Take out of `field` what `spec` wants out, and note it in `work`.

    Raises:
        Misuse: another data set does not compare with this one.
    """
    drops = spec.duplicates != "keep"
    with (work / DROPPED_FILE).open("w", encoding="ascii") as notes:
        _weed_others(field, spec, notes)
        twins = exact_pairs(field.checked.verdicts, field.side, field.splits)
        leaking = leaks(twins, field.side, field.splits)
        merging = np.zeros(len(twins), bool)
        if spec.duplicates == "merge":
            merging = field.side[twins.rows] == field.side[twins.keepers]
        several = _labels(field.population, twins.where(merging))
        num_leaks = int(leaking.sum()) if drops else 0
        if drops:
            _note_exact(field, twins, leaking, merging, notes)
            field.side[twins.rows] = OUT
        if spec.near_duplicates:
            num_leaks += _weed_near(field, spec, notes)
    return Weeded(several, int(merging.sum()), num_leaks, twins)


def read_notes(work: Path, what: str) -> Iterator[Note]:
    """Yield the notes that `weed` left: DROPPED images, or those that are only NOTED."""
    with (work / DROPPED_FILE).open(encoding="ascii") as lines:
        for line in lines:
            its, file, kind, reason = json.loads(line)
            if its == what:
                yield Note(file, kind, reason)


def count_shared(twins: Pairs, side: np.ndarray, one: int, other: int) -> int:
    """Return how many images of split number `one` have a byte-identical twin in `other`."""
    keepers = np.unique(twins.keepers)
    rows = np.concatenate([twins.rows, keepers])
    groups = np.concatenate([twins.keepers, keepers])
    shared = np.unique(groups[side[rows] == other])
    return int(np.isin(groups[side[rows] == one], shared).sum())


def _weed_others(field: Field, spec: BuildSpec, notes: TextIO) -> None:
    """Take out what another set has; at once, so that two sets do not take the same image."""
    for row, key, where in find_others(field.population, field.checked, field.side, spec):
        _say(
            notes, DROPPED, field.name(row), "in another set", f"the same bytes as {key} of {where}"
        )
        field.side[row] = OUT


def _labels(population: Population, pairs: Pairs) -> np.ndarray:
    """Return the SEVERAL of images that take over the labels of their twins."""
    rows = np.concatenate([pairs.rows, pairs.keepers])
    several = np.empty(len(rows), SEVERAL)
    several["row"] = np.concatenate([pairs.keepers, pairs.keepers])
    several["label"] = population.rows["cls"][rows]
    several = np.unique(several)
    _, where, counts = np.unique(several["row"], return_inverse=True, return_counts=True)
    return several[counts[where] > 1]


def _note_exact(
    field: Field, twins: Pairs, leaking: np.ndarray, merging: np.ndarray, notes: TextIO
) -> None:
    classes, cls = field.population.classes, field.population.rows["cls"]
    for (row, keeper), leaks_out, merges in zip(twins, leaking, merging, strict=True):
        same = f"the same bytes as '{field.name(keeper)}'"
        kind, reason = "duplicate", f"{same} of class {classes[cls[keeper]]}"
        if merges:
            kind, reason = "merged duplicate", f"{same}, whose labels have {classes[cls[row]]}"
        elif leaks_out:
            kind, reason = "held out elsewhere", f"{same} of split {_split(field, keeper)}"
        _say(notes, DROPPED, field.name(row), kind, reason)


def _weed_near(field: Field, spec: BuildSpec, notes: TextIO) -> int:
    """Note what looks like another image, take it out if wanted; returns the leaks."""
    hashes = field.checked.verdicts["phash"]
    near = near_duplicates(field.checked.verdicts, field.side, field.splits, spec.near_duplicates)
    drops = spec.duplicates != "keep"
    for row, keeper in near:
        bits = (int(hashes[row]) ^ int(hashes[keeper])).bit_count()
        what = f"'{field.name(keeper)}' of split {_split(field, keeper)}"
        reason = f"looks like {what} ({bits} of 64 bits differ)"
        _say(notes, DROPPED if drops else NOTED, field.name(row), "near duplicate", reason)
    num_leaks = int(leaks(near, field.side, field.splits).sum())
    if not drops:
        return 0
    field.side[near.rows] = OUT
    return num_leaks


def _split(field: Field, row: int) -> str:
    return field.splits[field.side[row]]


def _say(notes: TextIO, what: str, file: str, kind: str, reason: str) -> None:
    notes.write(json.dumps([what, file, kind, reason]) + "\n")
