"""The lease: one writer for each run, whatever jobs come, die and come back."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.run import lease as lease_module
from pipeline.run.lease import Lease, LeaseHeld

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.run.lease import Lease
lease = Lease(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path / "run" / "lease.json"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another living process that holds the lease."""
    env = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_refused_and_told_who_holds_it(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(LeaseHeld, match=f"process {holder.pid}.*another name="):
        Lease(path)


def test_the_lease_of_a_killed_process_on_this_host_is_free_at_once(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    taken = Lease(path)
    assert taken.token == 2
    taken.release()


def test_a_released_lease_can_be_taken_and_tokens_rise(path: Path) -> None:
    first = Lease(path)
    first.release()
    second = Lease(path)
    assert (first.token, second.token) == (1, 2)
    second.release()


def test_a_later_attempt_of_the_same_job_takes_over_and_fences_the_zombie(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    zombie = Lease(path)
    heir = Lease(path)
    with pytest.raises(LeaseHeld, match="took this run over"):
        zombie.check()
    heir.check()
    zombie.release()
    heir.check()
    heir.release()


def test_a_silent_holder_on_another_host_is_stale_after_a_while(path: Path) -> None:
    mine = Lease(path)
    mine.release()
    held = {**json.loads(path.read_text()), "host": "elsewhere", "released": False, "token": 5}
    path.write_text(json.dumps({**held, "heartbeat_s": time.time() - 10}))
    with pytest.raises(LeaseHeld, match="on elsewhere"):
        Lease(path)
    path.write_text(json.dumps({**held, "heartbeat_s": time.time() - lease_module.STALE_S - 1}))
    taken = Lease(path)
    assert taken.token == 6
    taken.release()


def test_the_heartbeat_is_renewed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.05)
    lease = Lease(path)
    held = {**json.loads(path.read_text()), "host": "elsewhere", "heartbeat_s": 0.0}
    path.write_text(json.dumps(held))
    deadline = time.monotonic() + 10
    while not (found := lease_module.holder(path)) or not found.lives:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert found.age_s < 10
    with pytest.raises(LeaseHeld, match="on elsewhere"):
        Lease(path)
    lease.release()
    assert [p.name for p in path.parent.iterdir()] == ["lease.json"]


def test_a_full_disk_does_not_end_the_heartbeat(
    small_disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next job to come would take the lease of one that lives."""
    disk, fill = small_disk
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.05)
    lease = Lease(disk / "lease.json")
    deadline = time.monotonic() + 10
    while not (disk / "lease.json.beat-1").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    fill()
    filled_s = time.time()
    while json.loads((disk / "lease.json.beat-1").read_text())["heartbeat_s"] <= filled_s:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (disk / "filler").unlink()
    lease.release()


def test_a_zombie_that_thaws_within_its_heartbeat_takes_nothing_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It froze after it had looked at its token, as storage that does not answer freezes it."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.01)
    frozen, thaw = threading.Event(), threading.Event()
    write = lease_module.write_json

    def freezing(file: Path, values: object) -> None:
        if threading.current_thread().name == "lease" and not thaw.is_set():
            frozen.set()
            thaw.wait(30)
        write(file, values)

    monkeypatch.setattr(lease_module, "write_json", freezing)
    zombie = Lease(path)
    assert frozen.wait(30)
    heir = Lease(path)
    thaw.set()
    zombie._thread.join(0.2)
    heir.check()
    with pytest.raises(LeaseHeld, match="took this run over"):
        zombie.check()
    zombie.release()
    heir.check()
    heir.release()


def test_two_that_break_one_guard_do_not_both_hold_the_run(path: Path) -> None:
    """The token alone would not tell them apart: both raised the same one."""
    first = Lease(path)
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "owner": "another"}))
    with pytest.raises(LeaseHeld, match="took this run over"):
        first.check()
    path.write_text(json.dumps(held))
    first.check()
    first.release()


def test_a_guard_that_changes_hands_is_not_broken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the waiting takes: each of those before had its own."""
    guard = path.with_name("lease.json.lock")
    guard.parent.mkdir(parents=True)
    guard.touch()
    turns: list[int] = []

    def sleep(seconds: float) -> None:
        turns.append(guard.stat().st_ino)
        guard.rename(guard.with_name(f"held-{len(turns)}"))
        if len(turns) < 5:
            guard.touch()

    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(lease_module.time, "sleep", sleep)
    Lease(path).release()
    assert len(set(turns)) == 5


def test_a_guard_left_by_a_dead_process_does_not_block_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir(parents=True)
    path.with_name("lease.json.lock").touch()
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: float(next(clock)))
    lease = Lease(path)
    lease.release()
