"""Work over processes, and how far it is.

Workers are started by spawn, never see Ctrl-C (the parent stops them) and end when the parent is
gone. A worker that dies is named with its likely cause.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from typing import Self, TypeVar

from data_prep.failure import Failed
from data_prep.progress import Meter

TASKS_AHEAD = 3
WAKE_S = 1.0

Task = TypeVar("Task")
Result = TypeVar("Result")


def num_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def run(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """Yield `function(task)` for all tasks, in the order in which they finish.

    Whoever stops early (an error, Ctrl-C) stops the workers in the middle of their tasks.

    Raises:
        Failed: a worker process died; whatever `function` raises is passed on.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    pool = _Pool(workers)
    pending: set[Future[Result]] = set()
    try:
        for task in tasks:
            pending.add(pool.submit(function, task))
            if len(pending) >= workers * TASKS_AHEAD:
                done, pending = _some_of(pending)
                yield from (future.result() for future in done)
        while pending:
            done, pending = _some_of(pending)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        pool.close()
        raise Failed(_cause([process.exitcode for process in pool.processes])) from None
    except BaseException:
        for process in pool.processes:
            process.terminate()
        raise
    finally:
        pool.close()


def _some_of(pending: set[Future[Result]]) -> tuple[set[Future[Result]], set[Future[Result]]]:
    """Wait until some are done and return them and the rest; no wait is long, for Ctrl-C."""
    done: set[Future[Result]] = set()
    while not done:
        with _interrupted_at_its_end():
            done, pending = wait(pending, WAKE_S, FIRST_COMPLETED)
    return done, pending


@contextmanager
def _interrupted_at_its_end() -> Iterator[None]:
    """Let Ctrl-C raise as the block ends: within, a lock of the executor would stay held."""
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or before is not signal.default_int_handler:
        yield
        return
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt


class _Pool:
    """An executor that knows its processes, so that their exit codes can be told."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(workers, context, initializer=_start_worker)
        self._others = set(multiprocessing.active_children())
        self._workers = workers
        self.processes: set[BaseProcess] = set()

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        # A process inherits this mask: Ctrl-C while it starts would print its traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            future = self._executor.submit(function, task)
            if len(self.processes) < self._workers:
                self.processes |= set(multiprocessing.active_children()) - self._others
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return future

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)


def _cause(exit_codes: list[int | None]) -> str:
    """Say why a worker died; the others were ended by SIGTERM after it."""
    codes = [code for code in exit_codes if code not in (None, 0, -signal.SIGTERM)]
    code = codes[0] if codes else -signal.SIGTERM
    again = "run the same command again, what is finished is kept"
    if code == -signal.SIGKILL:
        return (
            "a worker process was killed (signal 9), most likely because the memory ran out (of "
            f"this machine, of the container or of SLURM's --mem): {again}; use fewer --workers or "
            "more memory"
        )
    if code == -signal.SIGTERM:
        return f"a worker process was ended from outside (signal 15): {again}"
    if code < 0:
        return (
            f"a worker process crashed ({signal.Signals(-code).name}) in the native code of an "
            f"image library: {again} with --workers 1, where the last file read is the culprit"
        )
    return f"a worker process ended with exit code {code}, see the lines above: {again}"


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


class Progress(Meter):
    """Count, share, rate and time left on the error stream, as `Meter` words them.

    On a terminal one line is rewritten in place; a log gets a line after 2 s and every 10 s. A
    thread prints, so that a long task does not look like a hang.
    """

    def __init__(self, doing: str, unit: str, total: int | None = None) -> None:
        super().__init__(doing, unit, total)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self.say_last()

    def _tick(self) -> None:
        pause_s = self.first_s
        while not self._ended.wait(pause_s):
            self.say()
            pause_s = self.every_s
