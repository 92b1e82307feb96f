"""Writers killed anywhere, full disks, cut files: there is always a checkpoint to resume from."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.state import TrainState, equal
from pipeline.checkpoint.store import Store, read
from pipeline.checkpoint.writer import Writer

KILLS, FULL_DISKS, CUTS = 200, 20, 20
TENSOR = 20_000
"""Elements of each tensor: files of 80 kB, so that a limit lies within a file, not beside it."""


def make_state(step: int) -> TrainState:
    numbers = torch.Generator().manual_seed(step)
    weights, buffers, ema, slots = ({"t": torch.randn(TENSOR, generator=numbers)} for _ in range(4))
    return TrainState(step, weights, buffers, ema, slots)


def make_store(folder: Path) -> Store:
    store = Store(folder, keep=2, fence=lambda: None)
    store.prepare()
    return store


def resumed(store: Store) -> TrainState:
    """Do what a new attempt does: clear, choose, read."""
    store.prepare()
    newest = store.newest(lambda text: None)
    assert newest is not None
    return read(newest)


def commit_in_child(store: Store, state: TrainState, kill_after_s: float | None) -> float:
    """Commit in a child, killed when it has worked for so long; returns how long it took."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, b"go")
            store.commit(state, {})
        finally:
            os._exit(0)
    os.read(reading, 2)
    started = time.perf_counter()
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for end in (reading, writing):
        os.close(end)
    return time.perf_counter() - started


@pytest.mark.slow
def test_writers_killed_at_random_moments_leave_a_whole_checkpoint(tmp_path: Path) -> None:
    store, draw = make_store(tmp_path), random.Random(0)
    store.commit(make_state(1), {})
    whole_s = min(commit_in_child(store, make_state(step), None) for step in (2, 3, 4))
    step, found = 5, Counter[int]()
    for _ in range(KILLS):
        commit_in_child(store, make_state(step), draw.uniform(0, 1.1 * whole_s))
        found[len(list(store.folder.glob("*.tmp/*")))] += 1
        state = resumed(store)
        assert equal(state, make_state(state.step))
        assert state.step in (step - 1, step)
        step = state.step + 1
    assert len(found) >= 4, f"all kills came at the same moment: files written {found}"
    store.commit(make_state(step), {})
    assert resumed(store).step == step


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which root alone may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1600k", "none", str(disk)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disks_cost_a_checkpoint_and_nothing_else(small_disk: Path) -> None:
    store, draw, said = make_store(small_disk / "checkpoints"), random.Random(1), list[str]()
    writer = Writer(store, said.append)
    store.commit(make_state(1), {})
    for step in range(2, FULL_DISKS + 2):
        free = shutil.disk_usage(small_disk).free
        filler = small_disk / "filler"
        filler.write_bytes(bytes(free - draw.randrange(0, 16 * TENSOR)))
        writer.save(make_state(step), {})
        assert not writer.wait()
        assert "No space left" in said[-1], said[-1]
        assert not list(store.folder.glob("*.tmp"))
        assert equal(resumed(store), make_state(step - 1))
        filler.unlink()
        writer.save(make_state(step), {})
        assert writer.wait()
        assert equal(resumed(store), make_state(step))
    assert len(said) == FULL_DISKS


def test_a_cut_file_sends_a_resume_to_the_checkpoint_before(tmp_path: Path) -> None:
    store, draw = make_store(tmp_path), random.Random(2)
    for _ in range(CUTS):
        for step in (1, 2):
            store.commit(make_state(step), {})
        newest = store.folder / "step-000000002"
        file = draw.choice(sorted(newest.iterdir()))
        os.truncate(file, draw.randrange(file.stat().st_size))
        said: list[str] = []
        chosen = store.newest(said.append)
        assert chosen is not None and equal(read(chosen), make_state(1))
        assert len(said) == 1 and str(newest) in said[0]
        assert file.name in said[0]
