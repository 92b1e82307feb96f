"""Slots of shared memory that workers write micro-batches into and the training reads in place.

A slot is a file in memory that no folder knows: nothing is copied between processes, the limit of
/dev/shm does not count, and nothing is left behind however a process ends. It is lent out as an
array and free again when the last view of that array is gone, so nobody ever sees another's pixels.
Where pages are locked, each slot is registered with CUDA once, when it is first used.
"""

import mmap
import os
import tempfile
import warnings
import weakref
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.spec import Failure

Shape = tuple[int, ...]


class Slot(NamedTuple):
    """The memory of one batch; a number is never used again."""

    number: int
    num_bytes: int


class WorkerSlots:
    """The slots that a worker has been given, by number."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def __contains__(self, slot: Slot) -> bool:
        return slot.number in self._maps

    def add(self, slot: Slot, descriptor: int) -> None:
        """Map a slot's file; the descriptor is closed."""
        self._maps[slot.number] = mmap.mmap(descriptor, slot.num_bytes)
        os.close(descriptor)

    def array(self, slot: Slot, shape: Shape) -> np.ndarray:
        """Return a slot's memory as a uint8 array of `shape`, to write into."""
        return np.frombuffer(self._maps[slot.number], np.uint8, prod(shape)).reshape(shape)


class Ring:
    """The slots of a rank; used by the process that trains.

    Args:
        slot_bytes: of a slot; a larger batch gets a larger slot of its own.
        page_lock: lock the pages, so that copies to the GPU run beside the work.
        shared: with other processes.
    """

    def __init__(self, slot_bytes: int, page_lock: bool = False, shared: bool = True) -> None:
        self.slot_bytes = slot_bytes
        self._shared = shared
        self._page_lock = page_lock
        self._added = 0
        self._memory: dict[Slot, _Memory] = {}
        self._free: list[Slot] = []

    @property
    def in_use(self) -> int:
        """Slots that are being written, wait, or are still looked at."""
        return len(self._memory) - len(self._free)

    def descriptor(self, slot: Slot) -> int:
        """Return the file of a slot, for a worker."""
        return self._memory[slot].descriptor

    def lend(self, shape: Shape) -> tuple[Slot, np.ndarray]:
        """Return a free slot and its memory as a uint8 array of `shape`.

        It is in use for as long as the array, a view of it or a tensor made from it lives.

        Raises:
            RingFailed: there is no memory for another slot.
        """
        needed = prod(shape)
        while self._free:
            slot = self._free.pop()
            if slot.num_bytes >= needed:
                return slot, np.asarray(_Loan(self, slot, self._memory[slot], shape))
            self._memory.pop(slot).give_back()
        slot = self._add(max(needed, self.slot_bytes))
        return slot, np.asarray(_Loan(self, slot, self._memory[slot], shape))

    def take_back(self, slot: Slot) -> None:
        """Note that nobody looks at a slot any more."""
        if slot in self._memory:
            self._free.append(slot)

    def close(self) -> None:
        """Let go of the slots; memory that is still looked at goes later."""
        self._memory.clear()
        self._free.clear()

    def _add(self, num_bytes: int) -> Slot:
        pages = -(-num_bytes // mmap.PAGESIZE)
        slot = Slot(self._added, pages * mmap.PAGESIZE)
        try:
            self._memory[slot] = memory = _Memory(slot.num_bytes, self._shared)
        except (OSError, OverflowError) as error:
            raise RingFailed(
                f"slot {len(self._memory) + 1} of {num_bytes} bytes for the loader's images: "
                f"{error}; lower loader.workers or loader.prefetch, or give the job more memory "
                "(`ulimit -f` and `ulimit -n` count here too)"
            ) from None
        self._page_lock = self._page_lock and memory.lock()
        self._added += 1
        return slot


class RingFailed(Failure):
    """There is no memory for the slots; the message says how much was asked for."""


class _Memory:
    """A mapped slot; locked pages are unlocked when it goes."""

    def __init__(self, num_bytes: int, shared: bool) -> None:
        self._locked = False
        self.descriptor = -1  # mmap's word for memory without a file
        if shared:
            self.descriptor = _nameless_file()
            weakref.finalize(self, os.close, self.descriptor)
            os.ftruncate(self.descriptor, num_bytes)
        self._mapped = mmap.mmap(self.descriptor, num_bytes)
        self.address = np.frombuffer(self._mapped, np.uint8).ctypes.data

    def lock(self) -> bool:
        """Lock the pages and return whether that worked; without it copies are slower."""
        code = _cuda().cudaHostRegister(self.address, len(self._mapped), 0)
        self._locked = int(code) == 0
        if not self._locked:
            warnings.warn(
                f"CUDA cannot lock {len(self._mapped)} bytes of the loader's memory ({code}): "
                "copies to the GPU will wait instead of running beside the work",
                stacklevel=2,
            )
        return self._locked

    def give_back(self) -> None:
        """Return the pages to the system, for all processes that have them mapped."""
        self._unlock()
        self._mapped.madvise(mmap.MADV_REMOVE)

    def _unlock(self) -> None:
        if self._locked:
            self._locked = False
            _cuda().cudaHostUnregister(self.address)

    def __del__(self) -> None:
        self._unlock()


class _Loan:
    """What the arrays of a slot are views of: it goes with the last of them."""

    def __init__(self, ring: Ring, slot: Slot, memory: _Memory, shape: Shape) -> None:
        self._ring, self._slot, self._memory = ring, slot, memory
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": shape,
            "data": (memory.address, False),
        }

    def __del__(self) -> None:
        self._ring.take_back(self._slot)


def _cuda() -> Any:
    return torch.cuda.cudart()


def _nameless_file() -> int:
    """Return a file that no folder knows: memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("loader")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
