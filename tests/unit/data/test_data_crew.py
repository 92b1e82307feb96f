"""Worker processes end with their trainer, however it ends; no signal is lost at their start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.data.crew import _signals_held


def test_a_signal_during_the_start_is_held_back_and_not_lost():
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        with _signals_held("fork"):
            signal.raise_signal(signal.SIGUSR2)  # to this thread: others hold nothing back
            assert not seen
        assert seen == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


SCRIPT = """
import multiprocessing, os, signal, sys
from pipeline.data.batches import Demand
from pipeline.data.loading import LoaderSpec
from pipeline.data.workers import Feed
class Job:
    piece_images = 4
    def shape(self, ticket): return (8,)
    def make(self, ticket, piece, out): out[:] = ticket % 256
    def finish(self, ticket, images, parts): return ticket
if __name__ == "__main__":
    spec = LoaderSpec(workers=2, start_method="{method}")
    feed = Feed(Job(), spec, Demand(8, 1, 8))
    results = feed.batches(range(10**9))
    next(results)
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    {end}
"""


def run_script(repo: Path, folder: Path, end: str, method: str = "fork") -> tuple[int, list[int]]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(end=end, method=method))
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=240
    )
    assert "Exception ignored" not in done.stderr, done.stderr
    return done.returncode, [int(pid) for pid in done.stdout.split()]


def wait_until_gone(pids: list[int], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_a_worker_that_hangs_leaves_its_stack(repo, tmp_path):
    script = tmp_path / "script.py"
    text = SCRIPT.format(end="list(results)", method="fork")
    text = text.replace("out[:] = ticket % 256", "wait_for_ever() if ticket == 3 else None")
    text = text.replace("workers=2,", "workers=1, timeout_s=1,")
    script.write_text("import time\ndef wait_for_ever(): time.sleep(1000)\n" + text)
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": str(repo)},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert "no worker answered in time" in done.stderr
    assert "Fatal Python error: Aborted" in done.stderr and "in wait_for_ever" in done.stderr


def test_a_process_that_leaves_in_mid_epoch_takes_its_workers_along(repo, tmp_path):
    code, pids = run_script(repo, tmp_path, "sys.exit(75)")
    assert code == 75 and len(pids) == 2
    assert wait_until_gone(pids, 5)


def test_workers_of_a_killed_process_end_by_themselves(repo, tmp_path):
    code, pids = run_script(repo, tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert code == -signal.SIGKILL
    assert wait_until_gone(pids, 15)


def test_a_fork_server_is_deaf_to_signals_too(repo, tmp_path):
    """It is the workers' parent: they end when a signal kills it."""
    end = """
    from multiprocessing import forkserver, resource_tracker
    for pid in (forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    wanted = [next(results) for _ in range(100)]
    sys.exit(0 if wanted == list(range(1, 101)) else 1)
"""
    code, pids = run_script(repo, tmp_path, end.strip(), "forkserver")
    assert code == 0 and len(pids) == 2
