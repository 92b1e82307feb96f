"""Runs a job over tickets in worker processes and hands the batches back in order.

A batch is made in pieces by whichever workers are free, in a slot of shared memory, and not copied
again: the first one is there soon, and few lie in memory. Processes, not threads, though decoding
lets go of Python's lock: about 0.07 of the 0.8 ms for an image hold it (draws, index, checksum),
so that a dozen threads would take all of it from the training, and a thread that hangs cannot be
ended. On two cores two threads made 7 to 45 % more images while the slots were new, and as many
once they were warm; a process costs the trainer 3 to 8 us an image, and its worker 6 to 39.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from pipeline.data.batches import Demand
from pipeline.data.crew import Crew, LoaderFailed, own_bytes
from pipeline.data.loading import LoaderSpec
from pipeline.data.ring import Ring, Slot
from pipeline.data.worker import Broken, Job, Piece, Task
from pipeline.spec import Misuse

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")


class Footprint(NamedTuple):
    """Memory of a rank's loader: slots at most in use, and what the workers have of their own."""

    slots: int
    slot_bytes: int
    workers: int
    workers_bytes: int

    def __str__(self) -> str:
        slots = f"{self.slots} slots of {self.slot_bytes / 1e6:.1f} MB"
        workers = f"{self.workers} workers with {self.workers_bytes / 1e6:.0f} MB of their own"
        total = self.slots * self.slot_bytes + self.workers_bytes
        return f"loader of a rank: at most {slots}, {workers}: {total / 1e6:.0f} MB"


class Feed(Generic[T, P, R]):
    """Makes batches of tickets in worker processes, or with 0 workers in this one.

    Args:
        job: made once for each worker.
        spec: workers and how far they may be ahead.
        demand: the largest batch, and how many the caller takes and lets go of together.
        page_lock: lock the pages of the slots, for copies to a GPU.
    """

    def __init__(
        self, job: Job[T, P, R], spec: LoaderSpec, demand: Demand, page_lock: bool = False
    ) -> None:
        self._job, self._spec, self._demand, self._page_lock = job, spec, demand, page_lock
        self._ring: Ring | None = None
        self._results: Generator[R] | None = None
        self._crew: Crew | None = None

    def batches(self, tickets: Iterable[T]) -> Generator[R]:
        """Yield the batch of each ticket, in order; tickets are drawn only a little ahead.

        One iteration at a time: the workers of the one before end.

        Raises (while it is iterated):
            LoaderFailed: a worker was killed, crashed or a batch took longer than `timeout_s`.
            Failure, Misuse: as the job raised them.
        """
        self.stop()
        shared = self._spec.workers > 0
        self._ring = self._ring or Ring(self._demand.slot_bytes, self._page_lock, shared)
        make = self._by_workers if self._spec.workers else self._here
        self._results = make(tickets, self._ring)
        return self._results

    def footprint(self) -> Footprint:
        """Return what the feed takes at most; of the workers what they have now."""
        pieces = num_pieces(self._demand.num_images, self._job.piece_images)
        ahead = _most_ahead(self._spec, self._demand.at_once, pieces) if self._spec.workers else 0
        slots = 2 * self._demand.at_once + ahead
        pids = self._crew.pids if self._crew else []
        own = sum(map(own_bytes, pids))
        return Footprint(slots, self._demand.slot_bytes, self._spec.workers, own)

    def stop(self) -> None:
        """End the workers; harmless when there are none."""
        if self._results is not None:
            self._results.close()
            self._results = None

    def close(self) -> None:
        """End the workers and let go of the slots."""
        self.stop()
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _by_workers(self, tickets: Iterable[T], ring: Ring) -> Generator[R]:
        self._crew = Crew(self._job, ring, self._spec)
        try:
            line = _Line(self._job, tickets, self._spec, ring, self._demand.at_once, self._crew)
            yield from line.results()
        finally:
            self._crew.stop()
            self._crew = None

    def _here(self, tickets: Iterable[T], ring: Ring) -> Generator[R]:
        for ticket in tickets:
            yield _made_here(self._job, ticket, ring)


def num_pieces(num_images: int, piece_images: int) -> int:
    """Return into how many pieces a batch is cut."""
    return -(-num_images // piece_images) if piece_images else 1


def _most_ahead(spec: LoaderSpec, at_once: int, pieces: int) -> int:
    """Return how many batches of so many pieces are in the making: those that the caller will take
    together, and at least `spec.prefetch` pieces for each worker."""
    return max(at_once, -(-spec.workers * spec.prefetch // pieces), 1)


def _made_here(job: Job[T, P, R], ticket: T, ring: Ring) -> R:
    shape = job.shape(ticket)
    _, images = ring.lend(shape)
    part = job.make(ticket, Piece(0, shape[0], 0), images)
    return job.finish(ticket, torch.from_numpy(images), [part])


class _Making:
    """A batch in the making."""

    def __init__(self, number: int, ticket: Any, slot: Slot, images: np.ndarray) -> None:
        self.number, self.ticket, self.slot, self.images = number, ticket, slot, images
        self.parts: dict[Piece, Any] = {}
        self.wanted: list[Piece] = []

    @property
    def complete(self) -> bool:
        return len(self.parts) == len(self.wanted)

    def tasks(self, piece_images: int, workers: int) -> Iterator[Task]:
        """Cut the batch into pieces of about one size; those of worker -1 are for any."""
        count, pieces = len(self.images), num_pieces(len(self.images), piece_images)
        worker = -1 if piece_images else self.number % workers
        bounds = [count * n // pieces for n in range(pieces + 1)]
        for start, stop in zip(bounds, bounds[1:], strict=False):
            piece = Piece(start, stop, worker)
            self.wanted.append(piece)
            yield Task(self.number, self.ticket, piece, self.slot, self.images.shape)


class _Line:
    """The batches in the making, in the order of their tickets."""

    def __init__(
        self,
        job: Job,
        tickets: Iterable[Any],
        spec: LoaderSpec,
        ring: Ring,
        at_once: int,
        crew: Crew,
    ) -> None:
        self._job, self._tickets, self._spec, self._ring = job, iter(tickets), spec, ring
        self._at_once, self._crew = at_once, crew
        self._making: deque[_Making] = deque()
        self._tasks: deque[Task] = deque()
        self._drawn = 0
        self._refused: Misuse | None = None

    def results(self) -> Iterator[Any]:
        while self._advance():
            deadline = time.monotonic() + self._spec.timeout_s
            while not self._making[0].complete:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise LoaderFailed(self._crew.late(self._making[0].ticket))
                self._collect(left_s)
            self._collect(0)
            yield self._finished(self._making.popleft())

    def _finished(self, made: _Making) -> Any:
        parts = [made.parts[piece] for piece in made.wanted]
        for part in parts:
            if isinstance(part, Broken):
                raise part.error if not isinstance(part.error, str) else _crash(part.error)
        return self._job.finish(made.ticket, torch.from_numpy(made.images), parts)

    def _advance(self) -> bool:
        """Draw tickets and give out tasks as far as allowed; False where nothing is left to do."""
        while self._give() and self._may_draw():
            ticket = self._draw()
            if ticket is None:
                break
            slot, images = self._ring.lend(self._job.shape(ticket))
            made = _Making(self._drawn, ticket, slot, images)
            self._making.append(made)
            self._tasks.extend(made.tasks(self._job.piece_images, self._spec.workers))
            self._drawn += 1
        if self._refused is not None and not self._making:
            raise self._refused
        return bool(self._making)

    def _draw(self) -> Any:
        """Return the next ticket, None after the last; an error is kept until its turn comes."""
        try:
            return next(self._tickets, None) if self._refused is None else None
        except Misuse as error:
            self._refused = error
            return None

    def _may_draw(self) -> bool:
        """One may always be in the making; more only while there are slots for them."""
        if not self._making:
            return True
        most = _most_ahead(self._spec, self._at_once, len(self._making[-1].wanted))
        in_use = self._ring.in_use - len(self._making)
        return len(self._making) < most and in_use <= 2 * self._at_once

    def _give(self) -> bool:
        """Give tasks to workers, in order; False where one has to wait."""
        while self._tasks:
            if not self._crew.give(self._tasks[0]):
                return False
            self._tasks.popleft()
        return True

    def _collect(self, wait_s: float) -> None:
        """Take in what workers have finished, waiting at most `wait_s` for the first."""
        for number, piece, part in self._crew.take(wait_s):
            self._making[number - self._making[0].number].parts[piece] = part
        self._advance()


def _crash(text: str) -> LoaderFailed:
    return LoaderFailed(f"data loading failed: a worker crashed:\n{text}")
