"""Perceptual hashes: images that look alike differ in few of 64 bits.

The hash is imagehash's phash (the low frequencies of a 32x32 cosine transform, against their
median). The search is exact: two hashes that differ in at most 7 bits have one of their four
16-bit parts in common, or all but one bit of it.
"""

import io
import warnings

import numpy as np
from PIL import Image

_PARTS, _PART_BITS = 4, 16
_BLOCK_PAIRS = 1 << 22


def phash(stored: bytes) -> int:
    """Return the 64-bit hash of an image that was found whole."""
    import imagehash

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(stored)) as image:
            image.draft("L", (64, 64))
            bits = imagehash.phash(image).hash
    return int.from_bytes(np.packbits(np.asarray(bits, bool)).tobytes(), "big")


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return (M, 2) positions i < j, sorted, of all pairs that differ in at most `distance` bits.

    Args:
        hashes: (N,) uint64.
        distance: 0 to 7.
    """
    assert 0 <= distance < 2 * _PARTS
    masks = [0] if distance < _PARTS else [0, *(1 << bit for bit in range(_PART_BITS))]
    found = [np.zeros((0, 2), np.int64)]
    for part in range(_PARTS):
        values = (hashes >> np.uint64(part * _PART_BITS)).astype(np.uint16)
        order = np.argsort(values, kind="stable")
        for mask in masks:
            found += _match(hashes, values ^ np.uint16(mask), values[order], order, distance)
    return np.unique(np.concatenate(found), axis=0)


def _match(
    hashes: np.ndarray, wanted: np.ndarray, ordered: np.ndarray, order: np.ndarray, distance: int
) -> list[np.ndarray]:
    """Compare each hash with those whose part is the wanted one, some millions at a time."""
    low = np.searchsorted(ordered, wanted, "left")
    counts = np.searchsorted(ordered, wanted, "right") - low
    ends = np.cumsum(counts)
    found, start = [], 0
    while start < len(hashes):
        before = ends[start - 1] if start else 0
        end = max(int(np.searchsorted(ends, before + _BLOCK_PAIRS, "right")), start + 1)
        some = counts[start:end]
        rows = np.repeat(np.arange(start, end), some)
        inside = np.arange(len(rows)) - np.repeat(np.cumsum(some) - some, some)
        columns = order[low[rows] + inside]
        close = np.bitwise_count(hashes[rows] ^ hashes[columns]) <= distance
        close &= rows < columns
        found.append(np.stack([rows[close], columns[close]], axis=1))
        start = end
    return found
