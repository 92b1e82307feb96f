"""Worker processes: deaf to signals, never a hang, gone when their work is."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.data.loading import LoaderSpec
from pipeline.data.reader import BrokenSample
from pipeline.data.workers import LoaderFailed, _signals_held, in_workers
from pipeline.spec import Misuse


def double(ticket: int) -> int:
    return 2 * ticket


def refuse_five(ticket: int) -> int:
    if ticket == 5:
        raise BrokenSample("shard x: sample 'y'")
    if ticket == 6:
        raise Misuse("field z")
    return ticket


def sleep_at_three(ticket: int) -> int:
    time.sleep(60 if ticket == 3 else 0)
    return ticket


def settings_of_worker(ticket: int) -> tuple[int, bool]:
    ignored = {
        number
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
        if signal.getsignal(number) is signal.SIG_IGN
    }
    return torch.get_num_threads(), len(ignored) == 4


def children() -> list[int]:
    return [process.pid or 0 for process in multiprocessing.active_children()]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_tickets(workers):
    spec = LoaderSpec(workers=workers, prefetch=1)
    assert list(in_workers(double, range(40), spec)) == [2 * n for n in range(40)]
    assert not children()


def test_an_endless_line_of_tickets_is_drawn_only_a_little_ahead():
    drawn = []

    def tickets():
        for number in range(10**9):
            drawn.append(number)
            yield number

    results = in_workers(double, tickets(), LoaderSpec(workers=2, prefetch=3))
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert len(drawn) <= 5 + 2 * 3
    results.close()
    assert not children()


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_come_back_as_they_were_raised(workers):
    for first, kind in ((4, BrokenSample), (6, Misuse)):
        results = in_workers(refuse_five, range(first, 10), LoaderSpec(workers=workers))
        with pytest.raises(kind) as error:
            list(results)
        assert str(error.value) in ("shard x: sample 'y'", "field z")
    assert not children()


def test_workers_have_one_thread_and_ignore_the_signals_of_the_trainer():
    results = in_workers(settings_of_worker, [0, 1], LoaderSpec(workers=2))
    assert list(results) == [(1, True)] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_signals_to_the_workers_stop_nothing(number):
    results = in_workers(double, range(100), LoaderSpec(workers=2))
    assert next(results) == 0
    for pid in children():
        os.kill(pid, number)
    assert list(results) == [2 * n for n in range(1, 100)]


def test_a_killed_worker_is_a_named_error_and_no_hang():
    started = time.monotonic()
    results = in_workers(double, range(10**9), LoaderSpec(workers=2, timeout_s=60))
    next(results)
    with pytest.raises(RuntimeError, match=r"worker .*(died|killed by signal)"):
        os.kill(children()[0], signal.SIGKILL)
        for _ in results:
            pass
    results.close()
    assert time.monotonic() - started < 20
    assert not children()


def test_a_worker_that_hangs_is_a_named_error_after_the_timeout(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # 5 s
    started = time.monotonic()
    results = in_workers(sleep_at_three, range(10), LoaderSpec(workers=1, timeout_s=1))
    with pytest.raises(LoaderFailed, match=r"no worker answered in time.*loader.timeout_s is 1"):
        list(results)
    assert not children()  # although it sleeps and ignores SIGTERM
    assert time.monotonic() - started < 20


def test_the_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    list(in_workers(double, range(3), LoaderSpec(workers=1)))
    assert torch.equal(state, torch.get_rng_state())


def test_a_signal_during_the_start_is_held_back_and_not_lost():
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        with _signals_held("fork"):
            os.kill(os.getpid(), signal.SIGUSR2)
            assert not seen
        assert seen == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


SCRIPT = """
import multiprocessing, os, signal, sys
from pipeline.data.loading import LoaderSpec
from pipeline.data.workers import in_workers
if __name__ == "__main__":
    results = in_workers(abs, range(10**9), LoaderSpec(workers=2, start_method="{method}"))
    next(results)
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    {end}
"""


def run_script(repo: Path, folder: Path, end: str, method: str = "fork") -> tuple[int, list[int]]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(end=end, method=method))
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
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


def test_a_process_that_leaves_in_mid_epoch_takes_its_workers_along(repo, tmp_path):
    code, pids = run_script(repo, tmp_path, "sys.exit(75)")
    assert code == 75 and len(pids) == 2
    assert wait_until_gone(pids, 1)


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
