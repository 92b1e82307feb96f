"""Images that are the same: inside the set, in another set, or nearly.

Byte-identical files are found by size, crc32c and 64 bits of sha256, all three. Of a pair the
first in the order of the sources stays, but an image of a held-out split always goes before one of
train: what a model is measured on may not be in its training set.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.phash import near_pairs
from data_prep.population import EVAL, TRAIN

OUT = 255
"""The split number of images that are in no split."""
_BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class Pairs:
    """Images `rows`, each with the one of which it is a twin, `keepers`; (n,) uint32 each."""

    rows: np.ndarray
    keepers: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for row, keeper in zip(self.rows, self.keepers, strict=True):
            yield int(row), int(keeper)

    def where(self, chosen: np.ndarray) -> "Pairs":
        """Return the pairs that a mask or positions choose."""
        return Pairs(self.rows[chosen], self.keepers[chosen])


def exact_pairs(verdicts: np.ndarray, side: np.ndarray, splits: list[str]) -> Pairs:
    """Return every image with a byte-identical one that goes before it, ordered by row.

    Args:
        verdicts: (N,) VERDICT.
        side: (N,) number of the split in `splits`, or OUT.
        splits: names of the splits.
    """
    rows = _with_twins(verdicts, side)
    fields = [verdicts[name][rows] for name in ("crc32c", "size", "twin")]
    order = np.lexsort((rows, _turn(splits)[side[rows]], *fields))
    rows = rows[order]
    new = np.ones(len(rows), bool)
    new[1:] = False
    for field in fields:
        field[:] = field[order]
        new[1:] |= field[1:] != field[:-1]
    keepers = rows[new][np.cumsum(new) - 1]
    return _by_row(rows, keepers, ~new)


def near_duplicates(
    verdicts: np.ndarray, side: np.ndarray, splits: list[str], distance: int
) -> Pairs:
    """Return every image whose perceptual hash is within `distance` bits of one that stays.

    Images are taken in turn; one that is near an image that stays goes, so that no chain of
    small steps joins what is not alike.
    """
    rows = np.flatnonzero(side != OUT).astype(np.uint32)
    hashes = verdicts["phash"][rows]
    order = np.lexsort((rows, _turn(splits)[side[rows]], hashes))
    rows, hashes = rows[order], hashes[order]
    new = np.ones(len(rows), bool)
    new[1:] = hashes[1:] != hashes[:-1]
    leaders = rows[new]  # of each hash the one that goes first
    stays = _settle(leaders, near_pairs(hashes[new], distance), side, splits)
    keepers = leaders[stays][np.cumsum(new) - 1]
    return _by_row(rows, keepers, rows != keepers)


def leaks(pairs: Pairs, side: np.ndarray, splits: list[str]) -> np.ndarray:
    """Return (n,) bool: the pairs of a train image and its twin in another split."""
    if TRAIN not in splits:
        return np.zeros(len(pairs), bool)
    train = splits.index(TRAIN)
    return (side[pairs.rows] == train) & (side[pairs.keepers] != train)


def _with_twins(verdicts: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Return the rows whose content hash stands twice or more; 8 bytes an image are enough."""
    twins = verdicts["twin"][side != OUT]
    twins.sort()
    repeated = np.unique(twins[1:][twins[1:] == twins[:-1]])
    del twins
    found = [np.zeros(0, np.uint32)]
    for start in range(0, len(side) if len(repeated) else 0, _BLOCK_ROWS):
        block = verdicts["twin"][start : start + _BLOCK_ROWS]
        where = np.minimum(np.searchsorted(repeated, block), len(repeated) - 1)
        hit = (repeated[where] == block) & (side[start : start + _BLOCK_ROWS] != OUT)
        found.append((np.flatnonzero(hit) + start).astype(np.uint32))
    return np.concatenate(found)


def _turn(splits: list[str]) -> np.ndarray:
    """Return for each split number when it is its turn to keep an image: eval first, train last."""
    turn = np.zeros(OUT + 1, np.uint8)
    for number, name in enumerate(splits):
        turn[number] = {EVAL: 0, TRAIN: 2}.get(name, 1)
    return turn


def _by_row(rows: np.ndarray, keepers: np.ndarray, chosen: np.ndarray) -> Pairs:
    rows, keepers = rows[chosen], keepers[chosen]
    order = np.argsort(rows, kind="stable")
    return Pairs(rows[order], keepers[order])


def _settle(
    leaders: np.ndarray, pairs: np.ndarray, side: np.ndarray, splits: list[str]
) -> np.ndarray:
    """Return for each leader the position of the one that stays for it, maybe its own."""
    stays = np.arange(len(leaders))
    goes = np.zeros(len(leaders), bool)
    turn = np.empty(len(leaders), np.int64)
    turn[np.lexsort((leaders, _turn(splits)[side[leaders]]))] = stays
    for first, others in _neighbours(pairs, turn):
        if not goes[first]:
            free = others[~goes[others]]
            goes[free] = True
            stays[free] = first
    return stays


def _neighbours(pairs: np.ndarray, turn: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield in turn each image with its near ones that come later."""
    swap = turn[pairs[:, 0]] > turn[pairs[:, 1]]
    early, late = np.where(swap, pairs[:, ::-1].T, pairs.T)
    order = np.lexsort((turn[late], turn[early]))
    early, late = early[order], late[order]
    bounds = np.append(np.flatnonzero(np.diff(early, prepend=-1)), len(early)).tolist()
    for start, end in itertools.pairwise(bounds):
        yield int(early[start]), late[start:end]
