"""The worker processes of a loader: started, given work, watched, ended.

Signals meant for the trainer never reach a worker, a dead or stuck worker is a named error instead
of a hang, the global random state is left alone, and no worker outlives its use.
"""

import atexit
import multiprocessing
import multiprocessing.util  # its exit hook waits for workers: ours, registered later, runs first
import os
import selectors
import signal
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.data.loading import LoaderSpec
from pipeline.data.ring import Ring, Slot
from pipeline.data.worker import SIGNALS, Job, Piece, Task, work
from pipeline.spec import Failure

_MOST_TASKS = 64
"""Pieces sent to one worker ahead; more could fill its connection, and sending would wait."""
_STOP_S = 2.0
_STATES = {"D": "waits for storage", "T": "is stopped", "R": "computes", "S": "sleeps"}


class LoaderFailed(Failure):
    """A worker died or took too long; the message says which, and what to look at."""


class Crew:
    """The worker processes and the connections to them.

    Args:
        job: what they do; each gets a copy.
        ring: where they put images.
        spec: how many, and how they are started.
    """

    def __init__(self, job: Job, ring: Ring, spec: LoaderSpec) -> None:
        self._spec, self._ring, self._owner = spec, ring, os.getpid()
        self._ends: list[Connection] = []
        self._selector = selectors.PollSelector()  # epoll's would be shared with forks
        self._owed: list[int] = [0] * spec.workers
        self._known: list[set[Slot]] = [set() for _ in range(spec.workers)]
        self._processes: list[BaseProcess] = []
        _RUNNING.add(self)
        if spec.start_method == "forkserver":  # else each worker imports torch again
            multiprocessing.set_forkserver_preload(["pipeline.data.worker"])
        try:
            with _signals_held(spec.start_method):
                for _ in range(spec.workers):
                    self._start(job)
        except BaseException:
            self.stop()
            raise

    def _start(self, job: Job) -> None:
        context: Any = multiprocessing.get_context(self._spec.start_method)
        ours, theirs = context.Pipe()
        self._selector.register(ours, selectors.EVENT_READ, len(self._ends))
        self._ends.append(ours)
        others = self._ends if self._spec.start_method == "fork" else []
        by_server = self._spec.start_method == "forkserver"
        process = context.Process(target=work, args=(job, theirs, others, by_server), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid or 0 for process in self._processes]

    def give(self, task: Task) -> bool:
        """Send a task to its worker, or to the one with the least to do; False: all have enough."""
        worker = task.piece.worker
        if worker < 0:
            worker = self._owed.index(min(self._owed))
        if self._owed[worker] >= _MOST_TASKS:
            return False
        try:
            self._send(worker, task)
        except ConnectionError:
            raise LoaderFailed(self._died(worker)) from None
        self._owed[worker] += 1
        return True

    def _send(self, worker: int, task: Task) -> None:
        end, known = self._ends[worker], self._known[worker]
        end.send(task)
        if task.slot not in known:
            known.add(task.slot)
            pid = self._processes[worker].pid
            reduction.send_handle(end, self._ring.descriptor(task.slot), pid)

    def take(self, wait_s: float) -> list[tuple[int, Piece, Any]]:
        """Return (number of the ticket, piece, part) of what is finished."""
        found = []
        for key, _ in self._selector.select(wait_s):
            worker: int = key.data
            try:
                while self._ends[worker].poll():
                    found.append(self._ends[worker].recv())
                    self._owed[worker] -= 1
            except (EOFError, OSError):
                raise LoaderFailed(self._died(worker)) from None
        return found

    def stop(self) -> None:
        """End the workers; those that are not gone in a moment are killed."""
        if os.getpid() != self._owner:
            return
        self._selector.close()
        for end in self._ends:
            end.close()
        deadline = time.monotonic() + _STOP_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
            process.join()
        _RUNNING.discard(self)

    def late(self, ticket: Any) -> str:
        """Say who owes what for too long, and what these do; they end with their stacks told."""
        owing = []
        for process, owed in zip(self._processes, self._owed, strict=True):
            if owed:
                owing.append(f"{process.pid} ({_state(process.pid)}, owes {owed})")
                if process.is_alive():
                    os.kill(process.pid or 0, signal.SIGABRT)
        return (
            f"data loading failed: no worker answered in time: {ticket} was not there after "
            f"{self._spec.timeout_s} s; workers {', '.join(owing)}; look at the storage of the "
            f"shards (loader.timeout_s is {self._spec.timeout_s}) and at their stacks in the log; "
            f"{_GO_ON}"
        )

    def _died(self, worker: int) -> str:
        process = self._processes[worker]
        process.join(_STOP_S)
        code = process.exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"exit {code}"
        return f"data loading failed: worker {process.pid} died ({how}); {_cause(code)}; {_GO_ON}"


_GO_ON = "the run can be started again and goes on where it was saved"
_RUNNING: "weakref.WeakSet[Crew]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Without this a process that ends in mid-epoch waits for workers that ignore SIGTERM."""
    for crew in list(_RUNNING):
        crew.stop()


@contextmanager
def _signals_held(start_method: str) -> Iterator[None]:
    """Start processes with the signals blocked; here they wait, so that none is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        if start_method != "fork":
            resource_tracker.ensure_running()  # its start unblocks TERM and INT behind our back
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cause(code: int) -> str:
    """Return what the exit code of a worker that died points at, and where to look."""
    if code == -signal.SIGBUS:
        return (
            "SIGBUS means that a mapped index file was cut while it was in use, or that its disk "
            "fails: run `python -m data_prep verify` on the folder of the shards, and see the "
            "node's kernel log"
        )
    return "a killed worker points at memory (the job's limit, ulimit, see the kernel's log)"


def _state(pid: int | None) -> str:
    """Return what a process does, from the kernel's point of view."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "is gone"
    return _STATES.get(letter, f"in state {letter}")


def own_bytes(pid: int) -> int:
    """Return the bytes of memory that a process shares with no other, 0 where that is not known.

    Of each mapping its private pages, at most the anonymous ones: neither what a fork has from its
    parent and has not written, nor maps of files, nor slots that only this process has touched yet.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    own_kb = private_kb = 0
    for line in lines:
        field, _, value = line.partition(":")
        if field in ("Private_Clean", "Private_Dirty"):
            private_kb += int(value.split()[0])
        elif field == "Anonymous":  # stands below those two
            own_kb += min(private_kb, int(value.split()[0]))
            private_kb = 0
    return own_kb * 1024
