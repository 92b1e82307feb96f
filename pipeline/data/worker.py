"""A worker's side: it makes pieces of batches, is deaf to signals meant for the trainer, and leaves
when the trainer does."""

import faulthandler
import os
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing import parent_process, reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.data.ring import Shape, Slot, WorkerSlots
from pipeline.spec import Failure, Misuse

T = TypeVar("T", contravariant=True)
P = TypeVar("P")
R = TypeVar("R", covariant=True)

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2})
"""What is meant for the trainer; a scheduler sends it to every process of a job."""
_FOLLOW_S = 1.0


class Job(Protocol[T, P, R]):
    """How a ticket becomes a batch; picklable, each worker has a copy."""

    @property
    def piece_images(self) -> int:
        """Most images that a worker makes at once; 0 gives whole tickets to workers in turn."""
        ...

    def shape(self, ticket: T) -> Shape:
        """Return the shape of the batch's images, (B, px, px, 3)."""
        ...

    def make(self, ticket: T, piece: "Piece", out: np.ndarray) -> P:
        """Write the images of a piece into `out` and return what else there is to know."""
        ...

    def finish(self, ticket: T, images: Tensor, parts: Sequence[P]) -> R:
        """Put the batch together, in the process that trains."""
        ...


class Piece(NamedTuple):
    """Images start <= n < stop of a ticket's batch.

    `worker` is the number of the one that has to make it, -1 where that may be any.
    """

    start: int
    stop: int
    worker: int


class Task(NamedTuple):
    """A piece to be made, of the ticket with this number, into this slot."""

    number: int
    ticket: Any
    piece: Piece
    slot: Slot
    shape: Shape


class Broken(NamedTuple):
    """What a worker sends back instead of a part: an error to be raised, or the text of a crash."""

    error: Failure | Misuse | str


def work(
    job: Job[Any, Any, Any],
    tasks: Connection,
    others: Sequence[Connection],
    forked_by_server: bool,
) -> None:
    """Do tasks until the trainer closes its end or is gone; the body of a worker process."""
    if not faulthandler.is_enabled():  # a fork has the trainer's
        faulthandler.enable(2)
    for connection in others:  # a fork has the trainer's ends too: with them there is no end
        connection.close()
    _settle(forked_by_server)
    slots = WorkerSlots()
    while True:
        try:
            task: Task = tasks.recv()
            if task.slot not in slots:  # its file follows its first task
                slots.add(task.slot, reduction.recv_handle(tasks))
            tasks.send((task.number, task.piece, _done(job, slots, task)))
        except (EOFError, ConnectionError):
            return


def _done(job: Job[Any, Any, Any], slots: WorkerSlots, task: Task) -> Any:
    out = slots.array(task.slot, task.shape)[task.piece.start : task.piece.stop]
    try:
        return job.make(task.ticket, task.piece, out)
    except (Failure, Misuse) as error:
        return Broken(error)
    except Exception:
        return Broken(traceback.format_exc())


def _settle(forked_by_server: bool) -> None:
    trainer = parent_process()
    assert trainer is not None and trainer.pid is not None
    parent = os.getppid() if forked_by_server else trainer.pid
    threading.Thread(target=_follow, args=(trainer.pid, parent), daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    torch.set_num_threads(1)


def _follow(trainer: int, parent: int) -> None:
    """Leave when the trainer is gone, even if another process of its kept the connection open."""
    while os.getppid() == parent:
        try:
            os.kill(trainer, 0)
        except ProcessLookupError:
            break
        time.sleep(_FOLLOW_S)
    os._exit(1)
