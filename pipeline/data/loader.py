"""The training loader: for every step, this rank's micro-batches of augmented uint8 images.

1. The plan says a step's image size, magnitude and number of micro-batches; tickets carry them to
   the workers, so a new stage rebuilds nothing.
2. The order says which sample ids a ticket stands for; the reader fetches and checks the bytes.
3. Decode and augment draw from a generator keyed by (seed, epoch, sample id).
So workers, ranks and restarts change nothing, and starting at any step costs nothing.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.augment import AugmentSpec
from pipeline.data.batches import MicroBatch, Share, Steps, Ticket, pad_labels
from pipeline.data.decode import BrokenImage, decode_train
from pipeline.data.index import SplitIndex
from pipeline.data.loading import LoaderSpec
from pipeline.data.order import Order, positions
from pipeline.data.reader import ShardReader
from pipeline.data.workers import in_workers
from pipeline.plan.draws import Stream, keyed


@dataclass(frozen=True)
class MakeMicroBatch:
    """The job of a worker: a ticket becomes a micro-batch."""

    reader: ShardReader
    order: Order
    augment: AugmentSpec
    seed: int
    global_batch: int

    def __call__(self, ticket: Ticket) -> MicroBatch:
        where = positions(ticket.step, ticket.index, self.global_batch, ticket.micro_batches)
        epochs, ids = self.order.at(where)
        images = np.empty((len(ids), ticket.px, ticket.px, 3), np.uint8)
        for image, epoch, sample_id in zip(images, epochs.tolist(), ids.tolist(), strict=True):
            rng = keyed(Stream.AUGMENT, self.seed, epoch, sample_id)
            data = self.reader.read(sample_id)
            try:
                image[:] = decode_train(data, ticket.px, self.augment, ticket.magnitude, rng)
            except BrokenImage as error:
                raise self.reader.broken(sample_id, str(error)) from None
        labels = pad_labels([self.reader.index.labels(sample_id) for sample_id in ids.tolist()])
        return MicroBatch(
            ticket.step, ticket.index, torch.from_numpy(images), labels, torch.from_numpy(ids)
        )


class StepLoader:
    """Runs a job for all tickets of a rank and groups the results by step.

    `wait_s` is how long the last step had to wait for its data.
    """

    def __init__(
        self, job: Callable[[Ticket], MicroBatch], plan: Steps, share: Share, spec: LoaderSpec
    ) -> None:
        self.wait_s = 0.0
        self._job, self._plan, self._share, self._spec = job, plan, share, spec
        self._results: Generator[MicroBatch] | None = None

    def steps(self, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield, from `first_step` to the plan's last, the rank's micro-batches in rising order.

        One iteration at a time; a new one, and `close`, end the workers of the one before.

        Raises:
            Misuse: the numbers of a stage do not divide each other.
            BrokenSample: names shard, key and remedy.
            LoaderFailed: a worker died or was too slow.
        """
        self.close()
        tickets = (t for step in self._share.tickets(self._plan, first_step) for t in step)
        pin = torch.cuda.is_available()
        results = self._results = in_workers(self._job, tickets, self._spec, pin)
        try:
            for wanted in self._share.tickets(self._plan, first_step):
                started = time.perf_counter()
                batches = [next(results) for _ in wanted]
                self.wait_s = time.perf_counter() - started
                assert [batch[:2] for batch in batches] == [ticket[:2] for ticket in wanted]
                yield batches
        finally:
            results.close()

    def close(self) -> None:
        """End the workers; harmless when there are none."""
        if self._results is not None:
            self._results.close()
            self._results = None


class TrainLoader(StepLoader):
    """Training batches of an indexed split."""

    def __init__(
        self,
        index: SplitIndex,
        order: Order,
        plan: Steps,
        global_batch: int,
        rank: int,
        world: int,
        augment: AugmentSpec,
        seed: int,
        spec: LoaderSpec,
    ) -> None:
        assert len(index) == order.num_samples
        job = MakeMicroBatch(ShardReader(index), order, augment, seed, global_batch)
        super().__init__(job, plan, Share(global_batch, rank, world, order.lanes), spec)
