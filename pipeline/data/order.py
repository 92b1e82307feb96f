"""The endless stream of samples: which sample stands at which position, computed, never stored.

Slot s of step k is position p = k * global_batch + s, epoch p // N, offset p % N. An epoch lies in
`lanes` (lane = offset % lanes). Each lane owns one contiguous range of the sample ids, another one
in every epoch, and walks it window by window: windows permuted, then shuffled inside, so that
reads stay near each other. What a lane has left over beside its whole windows comes somewhere among
them; were it always last, epochs would resemble each other. A window of 0 shuffles a whole lane at
once: best for tars whose samples are sorted by class. Every id comes exactly once per epoch, and a
seek costs nothing.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.plan.draws import Stream, keyed
from pipeline.spec import Misuse

_ROUNDS = 32
"""Rounds of the swap-or-not shuffle; log2(window!) / window bits a sample need about 10."""


class Order:
    """The order of one split.

    Args:
        num_samples: N, at least 1.
        seed: of the run.
        lanes: V, constant for the run; every number of micro-batches must divide it.
        window: samples shuffled together inside a lane; 0 takes the whole lane.
    """

    def __init__(self, num_samples: int, seed: int, lanes: int = 256, window: int = 1024) -> None:
        if num_samples < 1:
            raise Misuse("the training split has no samples; check `data` and its split name")
        assert lanes >= 1 and window >= 0 and seed >= 0
        self.num_samples, self.seed, self.lanes, self.window = num_samples, seed, lanes, window

    def sample_ids(self, epoch: int | np.ndarray, offset: int | np.ndarray) -> np.ndarray:
        """Return the sample ids (int64) at `offset` (0..N-1) of `epoch`; the two broadcast."""
        epochs, offsets = np.broadcast_arrays(np.asarray(epoch), np.asarray(offset))
        assert offsets.size == 0 or (offsets.min() >= 0 and offsets.max() < self.num_samples)
        ids = np.empty(offsets.shape, np.int64)
        for number in np.unique(epochs):
            here = epochs == number
            ids[here] = self._epoch_ids(int(number), offsets[here].astype(np.int64))
        return ids

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (epochs, sample ids) of positions in the endless stream, both int64."""
        epochs, offsets = np.divmod(positions, self.num_samples)
        return epochs, self.sample_ids(epochs, offsets)

    def _epoch_ids(self, epoch: int, offset: np.ndarray) -> np.ndarray:
        layout = _layout(self.seed, epoch, self.num_samples, self.lanes)
        index, lane = np.divmod(offset, self.lanes)
        length = self.num_samples // self.lanes + (lane < self.num_samples % self.lanes)
        size = np.full_like(length, self.window) if self.window else length
        key = lane.astype(np.uint64) << np.uint64(32)
        full, rest = np.divmod(length, size)
        before = (_mix(key + layout.rest_key) % (full + 1).astype(np.uint64)).astype(np.int64)
        end = before * size + rest
        is_rest = (index < end) & (index >= end - rest)
        window, inside = np.divmod(np.where(index < end, index, index - rest), size)
        moved = _shuffle(window, np.maximum(full, 1), key, layout.keys[0])
        window = np.where(is_rest, full, moved)
        size = np.minimum(size, length - window * size)
        start = window * (self.window or 1)
        inside = _shuffle(inside, size, key + window.astype(np.uint64), layout.keys[1])
        return (layout.starts[lane] + start + inside) % self.num_samples


def positions(step: int, micro_batch: int, global_batch: int, micro_batches: int) -> np.ndarray:
    """Return the positions (int64) of a micro-batch: the slots s with s % micro_batches == j."""
    assert 0 <= micro_batch < micro_batches
    return step * global_batch + np.arange(micro_batch, global_batch, micro_batches)


def check_division(global_batch: int, micro_batches: int, lanes: int, world: int) -> None:
    """Refuse numbers that do not divide each other; Misuse names the field and what would do."""
    if global_batch % micro_batches:
        raise Misuse(
            f"batch.global_size is {global_batch}: {micro_batches} micro-batches (field "
            "stages.N.micro_batches) do not divide it; change one of the two"
        )
    if lanes % micro_batches:
        raise Misuse(
            f"loader.lanes is {lanes}: {micro_batches} micro-batches (field "
            "stages.N.micro_batches) do not divide it; use a power of two for both"
        )
    if micro_batches % world:
        fitting = [n for n in range(1, world) if micro_batches % n == 0]
        raise Misuse(
            f"world size {world}: it does not divide the {micro_batches} micro-batches of a step "
            f"(field stages.N.micro_batches); start {fitting[-1]} ranks or change the field"
        )


class _Layout(NamedTuple):
    """What is drawn once for an epoch."""

    starts: np.ndarray
    """(lanes,) first id of each lane's range; ranges are in random order and wrap around at N."""
    keys: np.ndarray
    """(2, 2, rounds) uint64: round keys for the order of windows and for the inside."""
    rest_key: np.uint64
    """Says after how many whole windows each lane serves the rest."""


@lru_cache(maxsize=4)
def _layout(seed: int, epoch: int, num_samples: int, lanes: int) -> _Layout:
    rng = keyed(Stream.ORDER, seed, epoch)
    shift = rng.integers(num_samples)
    arrangement = rng.permutation(lanes)
    lengths = num_samples // lanes + (arrangement < num_samples % lanes)
    starts = np.empty(lanes, np.int64)
    starts[arrangement] = np.cumsum(lengths) - lengths + shift
    keys = rng.integers(0, 2**64, size=(2, 2, _ROUNDS), dtype=np.uint64)
    return _Layout(starts, keys, rng.integers(0, 2**64, dtype=np.uint64))


def _shuffle(x: np.ndarray, size: np.ndarray, key: np.ndarray, rounds: np.ndarray) -> np.ndarray:
    """Permute each x within range(size), by swap-or-not (Hoang, Morris, Rogaway 2012).

    A round pairs x with (pivot - x) mod size and swaps the pair or not, on one bit that both
    share; so it is a permutation for any size and needs no table. Elements with equal (size, key)
    are permuted together.
    """
    x, size = x.astype(np.uint64), size.astype(np.uint64)
    for pivot_key, bit_key in zip(*rounds, strict=True):
        pivot = _mix(key + pivot_key) % size
        partner = (pivot + size - x % size) % size
        swap = _mix(_mix(key + bit_key) + np.maximum(x, partner)) >> np.uint64(63)
        x = np.where(swap.astype(bool), partner, x)
    return x.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64 bits (the finaliser of splitmix64; Steele, Lea, Flood 2014)."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
