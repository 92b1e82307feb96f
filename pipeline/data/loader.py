"""The training loader: for every step, this rank's micro-batches of augmented uint8 images.

1. The plan says a step's image size, magnitude and number of micro-batches; tickets carry them to
   the workers, so a new stage rebuilds nothing.
2. The order says which sample ids a ticket stands for; the reader fetches and checks the bytes.
3. Decode and augment draw from a generator keyed by (seed, epoch, sample id).
4. Workers write the pixels into slots of the ring, where the training finds them.
So workers, ranks and restarts change nothing, and starting at any step costs nothing.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import AugmentSpec
from pipeline.data.bad import BadSpec, read_replacing
from pipeline.data.batches import MicroBatch, Share, Steps, Ticket
from pipeline.data.decode import BrokenImage, warn_if_slow
from pipeline.data.index import SplitIndex
from pipeline.data.loading import LoaderSpec
from pipeline.data.order import Order, positions
from pipeline.data.reader import ShardReader
from pipeline.data.ring import Shape
from pipeline.data.rows import Ops, Part, Rows, empty_part, micro_batch
from pipeline.data.worker import Job, Piece
from pipeline.data.workers import Feed, Footprint
from pipeline.plan.draws import Stream, keyed

PIECE_IMAGES = 16
"""Images that a worker makes at once: enough to hide what a piece costs, few enough to share."""
_BLOCK_IMAGES = 4096
"""Sample ids are computed for so many images of a rank at once: 2 us each, 100 for a piece's."""
_BLOCKS = 4
"""Those that lie in memory: of this step and the next, and of those ahead."""


class MakeMicroBatch:
    """The job of a worker: a ticket becomes a micro-batch.

    Args:
        reader: of the split.
        order: of its samples.
        rows: how an image is written; what is drawn for it is keyed by `seed`, epoch and id.
        seed: of the run.
        share: of the rank.
        bad: what happens with samples that cannot be used.
        ahead_steps: the reader is told of samples so many steps before they are read.
    """

    piece_images = PIECE_IMAGES

    def __init__(
        self,
        reader: ShardReader,
        order: Order,
        rows: Rows,
        seed: int,
        share: Share,
        bad: BadSpec,
        ahead_steps: int,
    ) -> None:
        self._reader, self._rows, self._seed, self._bad = reader, rows, seed, bad
        self._samples = _Samples(order, share)
        self._share, self._ahead_steps = share, ahead_steps

    def shape(self, ticket: Ticket) -> Shape:
        """Return the shape of a micro-batch's images."""
        return self._share.global_batch // ticket.micro_batches, *self._rows.shape(ticket.px)

    def make(self, ticket: Ticket, piece: Piece, out: np.ndarray) -> Part:
        """Write the images of a piece; bad samples are replaced where the policy says so."""
        if self._ahead_steps and ticket.index == self._share.rank and piece.start == 0:
            self._expect(ticket)
        epochs, ids = self._samples.at(ticket)
        wanted = slice(piece.start, piece.stop)
        part = empty_part()
        for row, epoch, sample_id in zip(
            out, epochs[wanted].tolist(), ids[wanted].tolist(), strict=True
        ):
            show = partial(self._show, row, ticket, (epoch, sample_id))
            (shown, ops), replaced = read_replacing(
                sample_id, show, self._bad, self._seed, self._samples.num_samples
            )
            part.add(shown, self._reader.index.labels(shown), ops)
            part.replaced.extend([replaced] if replaced else [])
        return part

    def finish(self, ticket: Ticket, images: Tensor, parts: Sequence[Part]) -> MicroBatch:
        """Put the micro-batch together."""
        return micro_batch(ticket, images, parts)

    def _expect(self, ticket: Ticket) -> None:
        """Tell the reader what this rank needs `ahead_steps` later; at the start, until then."""
        last = ticket.step + self._ahead_steps
        first = ticket.step if ticket.step == ticket.first_step else last
        for step in range(first, last + 1):
            self._reader.expect(self._samples.of_step(step).tolist())

    def _show(
        self, row: np.ndarray, ticket: Ticket, key: tuple[int, int], sample_id: int
    ) -> tuple[int, Ops | None]:
        """Write a sample's row, drawn by `key`: epoch, and id of the sample asked for."""
        data = self._reader.read(sample_id)
        rng = keyed(Stream.AUGMENT, self._seed, *key)
        try:
            return sample_id, self._rows.fill(data, ticket.px, ticket.magnitude, rng, row)
        except BrokenImage as error:
            raise self._reader.broken(sample_id, str(error)) from None


class _Samples:
    """Which samples a rank works on, computed for a block of steps at once.

    Rank r has the slots s of a step with s % world == r, whatever the number of micro-batches.
    """

    def __init__(self, order: Order, share: Share) -> None:
        self.num_samples = order.num_samples
        self._order, self._share = order, share
        images = min(_BLOCK_IMAGES * share.world, order.num_samples)  # epochs cost one by one
        self._steps = max(1, images // share.global_batch)
        self._blocks: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def at(self, ticket: Ticket) -> tuple[np.ndarray, np.ndarray]:
        """Return (epochs, sample ids) of a ticket's micro-batch, both (B,) int64."""
        epochs, ids = self._block(ticket.step)
        world = self._share.world
        own = slice(ticket.index // world, None, ticket.micro_batches // world)
        return epochs[own], ids[own]

    def of_step(self, step: int) -> np.ndarray:
        """Return the sample ids of all that the rank works on in a step."""
        return self._block(step)[1]

    def _block(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        number, inside = divmod(step, self._steps)
        if number not in self._blocks:
            steps = np.arange(number * self._steps, (number + 1) * self._steps)
            size = self._share.global_batch
            slots = positions(0, self._share.rank, size, self._share.world)
            self._blocks[number] = self._order.at(steps[:, None] * size + slots)
            if len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        epochs, ids = self._blocks[number]
        return epochs[inside], ids[inside]


class StepLoader:
    """Runs a job for all tickets of a rank and groups the results by step.

    `wait_s` is how long the last step had to wait for its data.
    """

    def __init__(
        self, job: Job[Ticket, Any, MicroBatch], plan: Steps, share: Share, spec: LoaderSpec
    ) -> None:
        warn_if_slow()
        self.wait_s = 0.0
        self._plan, self._share = plan, share
        self._feed = Feed(job, spec, share.demand(plan, job.shape), torch.cuda.is_available())

    def steps(self, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield, from `first_step` to the plan's last, the rank's micro-batches in rising order.

        One iteration at a time; a new one, and `close`, end the workers of the one before. A
        micro-batch's memory is used again once nothing refers to it.

        Raises:
            Misuse: the numbers of a stage do not divide each other.
            BrokenSample: names shard, key and remedy.
            LoaderFailed: a worker died or was too slow.
        """
        tickets = (t for step in self._share.tickets(self._plan, first_step) for t in step)
        results = self._feed.batches(tickets)
        try:
            for wanted in self._share.tickets(self._plan, first_step):
                started = time.perf_counter()
                batches = [next(results) for _ in wanted]
                self.wait_s = time.perf_counter() - started
                assert [batch[:2] for batch in batches] == [ticket[:2] for ticket in wanted]
                yield batches
                del batches  # the caller alone decides how long the memory is in use
        finally:
            results.close()

    def memory(self) -> Footprint:
        """Return what the loader takes at most; what the workers take is known once they run."""
        return self._feed.footprint()

    def close(self) -> None:
        """End the workers and let go of the memory; harmless when there are none."""
        self._feed.close()


class TrainLoader(StepLoader):
    """Training batches of an indexed split.

    Args:
        index: of the split.
        order: of its samples.
        plan: settings of the steps.
        global_batch: samples of a step, over all ranks.
        rank: of `world`.
        world: number of ranks.
        augment: what is drawn for a sample.
        seed: of the run.
        spec: of the loader.
        ahead_steps: for shards that come from far (`PlacesSpec.ahead_steps`): they are asked for
            so many steps before they are needed.
    """

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
        ahead_steps: int = 0,
    ) -> None:
        assert len(index) == order.num_samples
        share = Share(global_batch, rank, world, order.lanes)
        rows = Rows(augment, spec.decode)
        reader = ShardReader(index)
        job = MakeMicroBatch(reader, order, rows, seed, share, spec.bad, ahead_steps)
        super().__init__(job, plan, share, spec)
