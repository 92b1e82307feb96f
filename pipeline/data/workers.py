"""Runs a job over tickets in worker processes and hands the results back in order.

Built on torch's DataLoader (shared memory, prefetch) with what long runs need: signals meant for
the trainer never reach a worker, a dead or stuck worker is a named error instead of a hang, the
global random state is left alone, and no worker outlives its use. A job is any picklable callable.
"""

import atexit
import multiprocessing
import multiprocessing.util  # its exit hook waits for workers: ours, registered later, runs first
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.data.loading import LoaderSpec
from pipeline.data.reader import BrokenSample
from pipeline.spec import Failure, Misuse

T = TypeVar("T")
R = TypeVar("R")

_FOLLOW_S = 1.0
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2})


class LoaderFailed(Failure):
    """A worker died or took too long; the message says which, and what to look at."""


def in_workers(
    job: Callable[[T], R], tickets: Iterable[T], spec: LoaderSpec, pin: bool = False
) -> Generator[R]:
    """Yield `job(ticket)` for each ticket, in order; the workers end with the generator.

    Args:
        job: picklable; made once for each worker.
        tickets: drawn in this process, `spec.prefetch` times workers ahead.
        spec: with 0 workers everything happens in this process.
        pin: copy results into page-locked memory, for GPUs.

    Raises:
        LoaderFailed: a worker was killed, crashed or exceeded `spec.timeout_s`.
        BrokenSample, Misuse: as the job raised them.
    """
    if spec.workers == 0:
        yield from map(job, tickets)
        return
    running = _Running(job, tickets, spec, pin)
    try:
        for result in running.results():
            if isinstance(result, _Failed):
                raise result.error
            yield result
    finally:
        running.stop()


class _Failed:
    """An error that a worker sends back, to be raised without its worker's traceback."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Job(Dataset[Any], Generic[T, R]):
    def __init__(self, job: Callable[[T], R]) -> None:
        self._job = job

    def __getitem__(self, ticket: T) -> R | _Failed:
        try:
            return self._job(ticket)
        except (BrokenSample, Misuse) as error:
            return _Failed(error)


class _Running:
    """A DataLoader in use and its processes."""

    def __init__(
        self, job: Callable[[Any], Any], tickets: Iterable[Any], spec: LoaderSpec, pin: bool
    ) -> None:
        loader = DataLoader(
            _Job(job),
            batch_size=None,
            sampler=tickets,
            num_workers=spec.workers,
            prefetch_factor=spec.prefetch,
            timeout=spec.timeout_s,
            collate_fn=_as_is,
            worker_init_fn=partial(_begin, spec.start_method),
            multiprocessing_context=spec.start_method,
            pin_memory=pin,
            generator=torch.Generator(),  # else it draws from the global one
        )
        if spec.start_method == "forkserver":  # else each worker imports torch again
            multiprocessing.set_forkserver_preload(["pipeline.data.workers"])
        before = set(multiprocessing.active_children())
        with _signals_held(spec.start_method):
            self._iterator: Any = iter(loader)
        self._spec = spec
        self._processes = set(multiprocessing.active_children()) - before
        self._owner = os.getpid()
        _RUNNING.add(self)

    def results(self) -> Iterator[Any]:
        while True:
            try:
                result = next(self._iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader" not in str(error):
                    raise
                raise LoaderFailed(self._explain(str(error))) from None
            yield result

    def stop(self) -> None:
        """End the workers; those that do not follow within torch's 5 s each are killed."""
        if self._iterator is None or os.getpid() != self._owner:
            return
        iterator, self._iterator = self._iterator, None
        iterator._shutdown_workers()  # torch has no public way, and __del__ comes too late
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()

    def _explain(self, error: str) -> str:
        dead = [f"{p.pid} (exit {p.exitcode})" for p in self._processes if p.exitcode is not None]
        what = f"worker {', '.join(dead)} died" if dead else "no worker answered in time"
        return (
            f"data loading failed: {what}: {error.splitlines()[0]}; killed workers point at memory "
            f"(ulimit, /dev/shm, cgroup), late ones at slow storage (loader.timeout_s is "
            f"{self._spec.timeout_s}); the run can be started again and goes on where it was saved"
        )


_RUNNING: "weakref.WeakSet[_Running]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Without this a process that ends in mid-epoch waits for workers that ignore SIGTERM."""
    for running in list(_RUNNING):
        running.stop()


@contextmanager
def _signals_held(start_method: str) -> Iterator[None]:
    """Start processes with the signals blocked; here they wait, so that none is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        if start_method != "fork":
            resource_tracker.ensure_running()  # its start unblocks TERM and INT behind our back
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(start_method: str, worker: int) -> None:
    """Settle a worker: deaf to signals, gone when its trainer is, one thread for the work."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None and trainer.pid is not None
    parent = os.getppid() if start_method == "forkserver" else trainer.pid
    threading.Thread(target=_follow, args=(trainer.pid, parent), daemon=True).start()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    torch.set_num_threads(1)


def _follow(trainer: int, parent: int) -> None:
    """Leave when the trainer is gone; torch's own watch misses one that died during the start."""
    while os.getppid() == parent:
        try:
            os.kill(trainer, 0)
        except ProcessLookupError:
            break
        time.sleep(_FOLLOW_S)
    os._exit(1)


def _as_is(value: T) -> T:
    return value
