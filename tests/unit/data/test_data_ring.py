"""The ring: memory that processes share, lent out and free again when nobody looks at it."""

import multiprocessing
import os
import resource
import signal
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.ring import Ring, RingFailed, Slot, WorkerSlots

SHAPE = (2, 10, 10, 3)


@pytest.fixture
def ring():
    made = Ring(slot_bytes=10_000)
    yield made
    made.close()


def shared_kb(ring: Ring) -> int:
    """Return the kB of memory that the ring's files take."""
    files = [Path(f"/proc/self/fd/{ring.descriptor(slot)}") for slot in ring._memory]
    return sum(file.stat().st_blocks for file in files) // 2


def fill(slot: Slot, descriptor: int, value: int) -> None:
    """Write what a worker would write."""
    slots = WorkerSlots()
    slots.add(slot, os.dup(descriptor))
    slots.array(slot, SHAPE)[:] = value


def fill_given(slot: Slot, connection: Connection, value: int) -> None:
    fill(slot, reduction.recv_handle(connection), value)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_what_another_process_writes_is_there_without_a_copy(ring, method):
    context: Any = multiprocessing.get_context(method)
    slot, ours = ring.lend(SHAPE)
    here, there = context.Pipe()
    process = context.Process(target=fill_given, args=(slot, there, 7))
    process.start()
    reduction.send_handle(here, ring.descriptor(slot), process.pid)
    process.join(240)
    assert process.exitcode == 0
    assert ours.shape == SHAPE and (ours == 7).all()


def test_slots_do_not_overlap(ring):
    loans = [ring.lend(SHAPE) for _ in range(5)]
    for number, (slot, _) in enumerate(loans):
        fill(slot, ring.descriptor(slot), number)
    assert [set(ours.reshape(-1).tolist()) for _, ours in loans] == [{n} for n in range(5)]
    assert ring.in_use == len(ring._memory) == 5


def test_a_slot_is_free_when_the_last_view_of_it_is_gone(ring):
    slot, ours = ring.lend(SHAPE)
    views = [ours, torch.from_numpy(ours)]
    views += [views[1][1], views[1][1].numpy()[3:], torch.from_numpy(ours.reshape(-1))]
    del ours
    while views:
        assert ring.in_use == 1 and ring.lend(SHAPE)[0] != slot
        views.pop(0)
    assert ring.in_use == 0
    assert ring.lend(SHAPE)[0].number in (0, 1)
    assert len(ring._memory) == 2


def test_a_larger_batch_takes_a_larger_slot_and_the_smaller_ones_give_their_memory_back(ring):
    small = [ring.lend((10_000,))[1] for _ in range(3)]
    for number in range(3):
        small[number][:] = 1
    kept = small[0]
    del small
    _, large = ring.lend((500_000,))
    large[:] = 2
    assert len(ring._memory) == 2 and shared_kb(ring) < 520
    assert (kept == 1).all() and (large == 2).all()
    del large
    ring.lend((500_000,))
    assert len(ring._memory) == 2


def test_a_file_size_limit_is_named_too(ring):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(RingFailed, match="File too large.*ulimit -f"):
            ring.lend(SHAPE)
        _, ours = Ring(slot_bytes=10_000, shared=False).lend(SHAPE)
        ours[:] = 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_memory_is_taken_only_where_something_was_written():
    ring = Ring(slot_bytes=10**9)
    _, ours = ring.lend((100, 100))
    ours[:] = 1
    assert next(iter(ring._memory)).num_bytes >= 10**9 and shared_kb(ring) < 1000
    ring.close()


def test_no_folder_knows_the_memory(ring):
    """So /dev/shm may be small, and nothing is left there however the process ends."""
    slot, _ = ring.lend(SHAPE)
    file = Path(f"/proc/self/fd/{ring.descriptor(slot)}").readlink()
    assert file.name.startswith("memfd:") and file.name.endswith("(deleted)")


def test_closing_leaves_what_is_still_looked_at(ring):
    _, ours = ring.lend(SHAPE)
    ours[:] = 5
    ring.close()
    ring.close()
    assert (ours == 5).all()
    del ours
    assert ring.in_use == 0


def test_a_lack_of_memory_is_a_named_error(ring):
    with pytest.raises(RingFailed, match=r"slot 1 of \d+ bytes .*loader.workers"):
        ring.lend((2**62,))
    assert len(ring._memory) == 0
    ring.lend(SHAPE)


def test_a_process_that_is_killed_while_it_writes_breaks_nothing(ring):
    slot, ours = ring.lend(SHAPE)

    def write() -> None:
        fill(slot, ring.descriptor(slot), 3)
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    assert (ours == 3).all()


@pytest.mark.gpu
def test_pages_are_locked_once_and_tensors_know_it():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    ring = Ring(slot_bytes=10_000, page_lock=True)
    for _ in range(3):
        _, ours = ring.lend(SHAPE)
        tensor = torch.from_numpy(ours)
        assert tensor.is_pinned()
        ours[:] = 9
        assert (tensor.to("cuda", non_blocking=True).cpu() == 9).all()
        del ours, tensor
    assert len(ring._memory) == 1
    ring.close()


def test_pages_that_cannot_be_locked_are_told_once(monkeypatch):
    class NoMemory:
        def cudaHostRegister(self, *args: object) -> int:  # noqa: N802 - CUDA's name
            return 2

    monkeypatch.setattr(torch.cuda, "cudart", NoMemory)
    ring = Ring(slot_bytes=10_000, page_lock=True)
    with pytest.warns(UserWarning, match="cannot lock"):
        loan = ring.lend(SHAPE)
    other = ring.lend(SHAPE)
    assert np.shares_memory(loan[1], loan[1]) and not np.shares_memory(loan[1], other[1])
    ring.close()
