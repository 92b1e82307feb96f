"""Keyed random numbers: what is drawn depends on what it is for, never on who draws it or when.

Each use has a stream of its own and a key (epoch and sample id, or step and micro-batch), so that
workers, ranks, world size and restarts cannot change a draw. Philox is a counter-based generator:
making one costs a few microseconds and two keys never share a sequence.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the numbers are for; the values are part of every run's definition: never renumber."""

    ORDER = 1
    AUGMENT = 2
    MIX = 3
    NOISE = 4
    WEIGHTS = 5
    SUBSET = 6
    REPLACE = 7


def keyed(stream: Stream, seed: int, *key: int) -> np.random.Generator:
    """Return the generator of `stream` for (seed, *key); all parts are non-negative integers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((stream, seed, *key))))
