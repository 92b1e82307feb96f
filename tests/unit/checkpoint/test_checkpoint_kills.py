"""Writers killed anywhere, full disks, cut files: there is always a checkpoint to resume from."""

import os
import random
import resource
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

KILLS, MOMENTS, FULL_DISKS, CUTS = 200, 50, 20, 20
TENSOR = 20_000
"""Elements of the smallest tensor: a file of 80 kB, so that a limit lies within it, not beside."""


def make_state(step: int) -> TrainState:
    numbers = torch.Generator().manual_seed(step)
    weights, buffers, ema, slots = (
        {"t": torch.randn(TENSOR * times, generator=numbers)} for times in (1, 2, 3, 4)
    )
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


def start_commit(store: Store, state: TrainState, most_bytes: int | None = None) -> int:
    """Commit in a child that the kernel kills at byte `most_bytes` of a file; returns its id."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            if most_bytes is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
            os.write(writing, b"go")
            store.commit(state, {})
        finally:
            os._exit(0)
    os.read(reading, 2)
    os.close(reading)
    os.close(writing)
    return child


def exit_code(child: int) -> int:
    """Wait for a child; below 0: the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_writers_killed_at_any_byte_leave_the_checkpoint_before(tmp_path: Path) -> None:
    store, draw, found = make_store(tmp_path), random.Random(0), Counter[int]()
    store.commit(make_state(1), {})
    largest = (store.folder / "step-000000001" / "slots.safetensors").stat().st_size
    for _ in range(KILLS):
        most_bytes = draw.randrange(largest)
        child = start_commit(store, make_state(2), most_bytes)
        assert exit_code(child) == -signal.SIGXFSZ
        sizes = [path.stat().st_size for path in store.folder.glob("*.tmp/*")]
        assert max(sizes) <= most_bytes
        found[len(sizes)] += 1
        assert equal(resumed(store), make_state(1))
    assert set(found) == {1, 2, 3, 4}, f"files that were begun: {found}"
    store.commit(make_state(2), {})
    assert resumed(store).step == 2


@pytest.mark.slow
def test_writers_killed_at_any_moment_leave_a_whole_checkpoint(tmp_path: Path) -> None:
    store, draw, step = make_store(tmp_path), random.Random(0), 2
    started = time.perf_counter()
    assert exit_code(start_commit(store, make_state(1))) == 0
    whole_s = time.perf_counter() - started
    for _ in range(MOMENTS):
        child = start_commit(store, make_state(step))
        time.sleep(draw.uniform(0, whole_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state = resumed(store)
        assert equal(state, make_state(state.step))
        assert state.step in (step - 1, step)
        step = state.step + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which root alone may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4000k", "none", str(disk)]
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
        filler.write_bytes(bytes(free - draw.randrange(0, 40 * TENSOR)))
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
