"""The rank of an image: what shuffles, holds out and spreads images over spools.

A rank is a hash of (seed, purpose, name). So a new image moves the others little, and neither the
number of workers nor the place of the source changes anything.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from data_prep.tar import printable

ORDER = "order"
"""The purpose whose ranks are the order of the images in the shards."""


def rank_of(name: str, seed: int, purpose: str) -> int:
    """Return the rank of one name: 64 bits of blake2b, keyed with seed and purpose."""
    return _hash(printable(name).encode(), f"{seed} {purpose}".encode())


def ranks(names: Iterable[str], seed: int, purpose: str) -> np.ndarray:
    """Return the ranks of all names, (N,) uint64; no list of the names is kept."""
    key = f"{seed} {purpose}".encode()
    return np.fromiter((_hash(printable(name).encode(), key) for name in names), np.uint64)


def _hash(data: bytes, key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), "little")
