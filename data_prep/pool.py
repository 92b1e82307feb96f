"""Work over processes, and a progress line every two seconds.

Workers are started by spawn, ignore Ctrl-C (the parent stops them) and end when the parent is gone.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Self, TypeVar

from data_prep.failure import Failed

LINE_EVERY_S = 2.0
TASKS_AHEAD = 3

Task = TypeVar("Task")
Result = TypeVar("Result")


def num_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def run(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """Yield `function(task)` for all tasks, in the order in which they finish.

    Raises:
        Failed: a worker process died; whatever `function` raises is passed on.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    pending: set[Future[Result]] = set()
    try:
        for task in tasks:
            pending.add(pool.submit(function, task))
            if len(pending) >= workers * TASKS_AHEAD:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise Failed(
            "a worker process died (killed, or out of memory): run the same command again, with "
            "fewer --workers; what is finished is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


class Progress:
    """Counts, share and rate on the error stream: a line every two seconds and one at the end.

    A thread prints, so that a long task does not look like a hang.
    """

    def __init__(self, doing: str, unit: str, total: int | None = None) -> None:
        self._doing, self._unit, self._total = doing, unit, total
        self._count = 0
        self._start_s = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._say()

    def add(self, count: int = 1) -> None:
        """Count `count` more."""
        self._count += count

    def _tick(self) -> None:
        while not self._ended.wait(LINE_EVERY_S):
            self._say()

    def _say(self) -> None:
        took_s = time.monotonic() - self._start_s
        rate = self._count / max(took_s, 1e-3)
        of = "" if self._total is None else f" of {self._total:,}"
        share = f" ({100 * self._count // self._total} %)" if self._total else ""
        line = f"{self._doing}: {self._count:,}{of} {self._unit}{share}, {rate:,.0f}/s"
        print(f"{line}, {took_s:.0f} s", file=sys.stderr, flush=True)
