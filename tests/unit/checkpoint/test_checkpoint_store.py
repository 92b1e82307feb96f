"""Checkpoints on disk: whole or not there, verified before use, the older one behind them."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.settings import CheckpointSpec
from pipeline.checkpoint.state import PARTS, TrainState, Window, equal, state_from
from pipeline.checkpoint.store import Store, await_whole, read, read_facts
from pipeline.checkpoint.writer import MAX_FAILURES, Writer
from pipeline.run import faults
from pipeline.run.folder import RunFolder
from pipeline.spec import Failure

LAST = torch.channels_last


def make_state(step: int, best_step: int | None = None) -> TrainState:
    generator = torch.Generator().manual_seed(step)
    return TrainState(
        step=step,
        weights={"conv.weight": torch.randn(4, 3, 3, 3, generator=generator)},
        buffers={"bn.running_mean": torch.randn(4, generator=generator)},
        ema={"conv.weight": torch.randn(4, 3, 3, 3, generator=generator)},
        slots={"square_avg/conv.weight": torch.rand(4, 3, 3, 3, generator=generator)},
        scaler={"scale": 1024.0, "growth": 3.0},
        best_metric=0.5,
        best_step=best_step,
        bad_steps=(1,),
        windows=(Window(0, 0, 2),),
        bad_samples=3,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "checkpoints", keep=2, fence=lambda: None)
    store.prepare()
    return store


def steps(store: Store) -> list[int]:
    return sorted(int(path.name[5:]) for path in store.folder.glob("step-*"))


def test_a_committed_state_reads_back_to_the_bit(store: Store) -> None:
    state = make_state(7)
    state.weights["conv.weight"] = state.weights["conv.weight"].to(memory_format=LAST)
    path = store.commit(state.on_host(), {"recipe": "abc"})
    assert equal(read(path), state)
    assert read_facts(path) == {"recipe": "abc"}
    assert (store.folder / "LATEST").read_text().strip() == "step-000000007"


def test_papers_lie_in_every_checkpoint_and_are_sealed_with_it(tmp_path: Path) -> None:
    papers = {"labels.json": {"name": "pets", "classes": ["cat", "dog"]}}
    store = Store(tmp_path, 2, lambda: None, papers)
    store.prepare()
    older, newer = (store.commit(make_state(step), {}) for step in (1, 2))
    assert all(json.loads((p / "labels.json").read_text()) == papers["labels.json"]
               for p in (older, newer))  # fmt: skip
    paper = newer / "labels.json"
    paper.write_text(paper.read_text().replace("cat", "cow"), encoding="utf-8")
    told: list[str] = []
    assert store.newest(told.append) == older
    assert "labels.json" in told[0]


def test_equality_sees_a_single_flipped_bit(store: Store) -> None:
    a, b = make_state(1), make_state(1)
    assert equal(a, b)
    b.slots["square_avg/conv.weight"].view(torch.int32)[0, 0, 0, 0] ^= 1
    assert not equal(a, b)
    assert not equal(a, replace(a, best_step=4))


def test_the_last_ones_and_the_best_are_kept(store: Store) -> None:
    for step in (10, 20, 30, 40, 50):
        store.commit(make_state(step, best_step=20), {})
    assert steps(store) == [20, 40, 50]


def test_committing_the_same_step_again_changes_nothing(store: Store) -> None:
    path = store.commit(make_state(5), {})
    before = (path / "weights.safetensors").stat().st_mtime_ns
    store.commit(make_state(5), {})
    assert (path / "weights.safetensors").stat().st_mtime_ns == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: flip(path / "slots.safetensors"),
        lambda path: (path / "ema.safetensors").unlink(),
        lambda path: os.truncate(path / "weights.safetensors", 40),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text("{"),
        lambda path: (path / "manifest.json").write_text('{"files": {}}'),
        lambda path: (path / "state.json").write_text("{}"),
    ],
)
def test_a_damaged_newest_one_is_named_and_the_one_before_is_used(
    store: Store, harm: Callable[[Path], None]
) -> None:
    old, new = store.commit(make_state(1), {}), store.commit(make_state(2), {})
    harm(new)
    said: list[str] = []
    assert store.newest(said.append) == old
    assert len(said) == 1
    assert str(new) in said[0]


def test_a_damaged_one_is_replaced_when_its_step_is_committed_again(store: Store) -> None:
    path = store.commit(make_state(3), {})
    flip(path / "slots.safetensors")
    store.commit(make_state(3), {})
    assert equal(read(path), make_state(3))


def test_what_a_killed_writer_left_is_cleared_and_never_read(store: Store) -> None:
    litter = store.folder / "step-000000009.tmp"
    litter.mkdir()
    (litter / "weights.safetensors").write_bytes(b"half")
    assert store.newest(print) is None
    store.prepare()
    assert not litter.exists()


def test_a_rank_waits_until_its_host_sees_what_rank_0_chose(store: Store, tmp_path: Path) -> None:
    path = store.commit(make_state(3), {})
    hidden = tmp_path / "hidden"
    path.rename(hidden)
    comes = threading.Timer(0.3, lambda: hidden.rename(path))
    comes.start()
    assert equal(read(await_whole(path, patience_s=30)), make_state(3))
    comes.join()
    os.truncate(path / "ema.safetensors", 5)
    with pytest.raises(Failure, match=r"does not see ema.safetensors .* field 'runs'"):
        await_whole(path, patience_s=0.2)


KILLED = """
import sys, os, signal
from pathlib import Path
import torch
from pipeline.checkpoint import store as module
sys.path.insert(0, sys.argv[2])
from test_checkpoint_store import make_state
calls = limit = 0
def counted(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
module.os.fsync = counted(os.fsync)
module.os.rename = counted(os.rename)
module.os.replace = counted(os.replace)
module.save_file = counted(module.save_file)
for line in sys.stdin:
    limit = int(line)
    if (pid := os.fork()) == 0:
        module.Store(Path(sys.argv[1]), 2, lambda: None).commit(make_state(2), {})
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Commits once for each line of stdin; the commit is killed at as many calls as the line says."""


@pytest.mark.slow
def test_a_kill_at_any_system_call_of_a_commit_leaves_a_whole_checkpoint(store: Store) -> None:
    first = make_state(1)
    store.commit(first, {})
    seen, codes = set(), []
    script = [sys.executable, "-c", KILLED, store.folder, Path(__file__).parent]
    pipe = subprocess.PIPE
    with subprocess.Popen(script, stdin=pipe, stdout=pipe, text=True) as killed:
        assert killed.stdin is not None and killed.stdout is not None
        for call in (1, 2, 4, 5, 7, 9, 11, 13, 14, 15, 16, 17, 99):
            print(call, file=killed.stdin, flush=True)
            codes.append(int(killed.stdout.readline()))
            store.prepare()
            newest = store.newest(lambda text: None)
            assert newest is not None
            state = read(newest)
            assert equal(state, make_state(state.step))
            seen.add(state.step)
    assert codes == [-signal.SIGKILL] * 12 + [0]
    assert seen == {1, 2}


def test_a_full_disk_keeps_the_old_checkpoint_and_ends_the_run_at_the_third_failure(
    store: Store,
) -> None:
    store.commit(make_state(1), {})
    said: list[str] = []
    writer = Writer(store, said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        for step in range(2, 1 + MAX_FAILURES):
            writer.save(make_state(step), {})
            assert writer.wait() is False
        writer.save(make_state(9), {})
        with pytest.raises(OSError, match=r"File too large|27"):
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(said) == MAX_FAILURES
    assert "make room" in said[0]
    assert steps(store) == [1]
    assert [p.name for p in store.folder.glob("*.tmp")] == []


def test_training_may_change_weights_while_they_are_written(store: Store) -> None:
    state = make_state(4)
    writer = Writer(store, print)
    writer.save(state, {})
    state.weights["conv.weight"].zero_()
    assert writer.wait()
    assert equal(read(store.folder / "step-000000004"), make_state(4))


@pytest.mark.parametrize("works", [True, False])
def test_a_training_that_ends_by_an_error_lets_the_last_write_finish(
    store: Store, works: bool
) -> None:
    free, said = threading.Event(), list[str]()

    def fence() -> None:
        free.wait(60)
        if not works:
            raise OSError("disk is gone")

    writer = Writer(replace(store, fence=fence), said.append)
    writer.save(make_state(4), {})
    threading.Timer(0.2, free.set).start()
    writer.close()
    assert steps(store) == ([4] if works else [])
    assert works != any("not written (disk is gone)" in text for text in said)


def test_a_copy_reuses_memory_that_is_free_and_nothing_else() -> None:
    old = make_state(1).on_host()
    new = make_state(2)
    new.ema["more"] = torch.ones(3)
    where = {name: tensor.data_ptr() for name, tensor in old.weights.items()}
    copy = new.on_host(old)
    assert equal(copy, new)
    assert {name: tensor.data_ptr() for name, tensor in copy.weights.items()} == where
    new.weights["conv.weight"].zero_()
    assert equal(replace(copy, ema=make_state(2).ema), make_state(2))


def test_every_field_of_a_state_survives(store: Store) -> None:
    state = make_state(8, best_step=6)
    again = read(store.commit(state.on_host(), {}))
    names = ("step", "scaler", "best_metric", "best_step", "bad_steps", "windows",
             "bad_samples", *PARTS)  # fmt: skip
    for name in names:
        assert getattr(again, name), name
    assert again.windows[0].end == 2
    assert {field.name for field in fields(TrainState)} == set(names)


def test_what_was_left_out_belongs_to_the_state(store: Store) -> None:
    a = make_state(8)
    assert not equal(a, replace(a, windows=()))
    assert not equal(a, replace(a, bad_steps=(1, 2)))
    values = json.loads((store.commit(a, {}) / "state.json").read_text())
    assert values["windows"] == [{"step": 0, "first": 0, "end": 2}], "for people too"


def test_a_checkpoint_from_before_anything_could_be_left_out_is_read(store: Store) -> None:
    state = make_state(8)
    values = {
        k: v for k, v in state.scalars().items() if k not in ("bad_steps", "windows", "bad_samples")
    }
    old = state_from(values, state.tensors(), "state.json")
    assert old.bad_steps == () and old.windows == () and old.bad_samples == 0
    assert equal(old, replace(state, bad_steps=(), windows=(), bad_samples=0))


def test_another_schema_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="schema.*resume with the version that wrote it"):
        state_from({"schema": 99}, {}, "state.json")


def test_the_facts_beside_the_tensors_are_readable_json(store: Store) -> None:
    path = store.commit(make_state(12), {"data": "d"})
    values = json.loads((path / "state.json").read_text())
    assert values["step"] == 12
    assert values["facts"] == {"data": "d"}


def test_the_interval_is_given_in_steps_or_percent() -> None:
    assert CheckpointSpec(every_steps=70).interval(1000) == 70
    assert CheckpointSpec(every_percent=1.0).interval(107_336) == 1073
    assert CheckpointSpec().interval(10) == 1


@pytest.mark.parametrize("num_bytes", [0, 700, 2000])
def test_a_disk_full_on_purpose_leaves_nothing_half_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setattr(faults, "_plan", None)
    fault = {"kind": "nospace", "step": 2, "bytes": num_bytes}
    monkeypatch.setenv(faults.VARIABLE, json.dumps([fault]))
    faults.begin(RunFolder(store.folder.parent))
    store.commit(make_state(1), {})
    with pytest.raises(OSError, match="No space left"):
        store.commit(make_state(2), {})
    assert sorted(path.name for path in store.folder.iterdir()) == ["LATEST", "step-000000001"]
    store.commit(make_state(2), {})
    assert equal(read(store.folder / "step-000000002"), make_state(2))
