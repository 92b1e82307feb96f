"""Evaluation batches: every sample of a split exactly once over all ranks, nothing padded.

Rank r takes the ids r, r + world, ...; ranks may get different numbers of batches, so the caller
must not talk to other ranks batch by batch.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import Demand, EvalBatch
from pipeline.data.decode import BrokenImage, decode_eval, warn_if_slow
from pipeline.data.index import SplitIndex
from pipeline.data.loader import PIECE_IMAGES
from pipeline.data.loading import LoaderSpec
from pipeline.data.preprocess import PreprocessSpec
from pipeline.data.reader import ShardReader
from pipeline.data.ring import Shape
from pipeline.data.rows import Part, empty_part, joined
from pipeline.data.worker import Piece
from pipeline.data.workers import Feed, num_pieces


class Range(NamedTuple):
    """The ids of a batch: `first`, `first + world`, ..., `count` of them."""

    first: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] - no one counts fields
    world: int


@dataclass(frozen=True)
class MakeEvalBatch:
    """The job of a worker: sample ids become a batch."""

    reader: ShardReader
    preprocess: PreprocessSpec
    px: int
    piece_images: int = PIECE_IMAGES

    def shape(self, ticket: Range) -> Shape:
        """Return (B, px, px, 3)."""
        return ticket.count, self.px, self.px, 3

    def make(self, ticket: Range, piece: Piece, out: np.ndarray) -> Part:
        """Write the images of a piece."""
        part = empty_part()
        for row, number in zip(out, range(piece.start, piece.stop), strict=True):
            sample_id = ticket.first + number * ticket.world
            data = self.reader.read(sample_id)
            try:
                decode_eval(data, self.preprocess, self.px, row)
            except BrokenImage as error:
                raise self.reader.broken(sample_id, str(error)) from None
            part.add(sample_id, self.reader.index.labels(sample_id))
        return part

    def finish(self, ticket: Range, images: Tensor, parts: Sequence[Part]) -> EvalBatch:
        """Put the batch together."""
        return EvalBatch(images, *joined(parts))


def eval_batches(
    index: SplitIndex,
    preprocess: PreprocessSpec,
    rank: int,
    world: int,
    batch: int,
    workers: int = 0,
    px: int | None = None,
    timeout_s: int = 300,
) -> Iterator[EvalBatch]:
    """Yield this rank's batches of at most `batch` samples, by rising id.

    Args:
        index: of the split.
        preprocess: how images are prepared.
        rank: of `world`.
        world: number of ranks.
        batch: most samples of a batch; the last one may have fewer.
        workers: processes; 0 reads in this one.
        px: another image size than `preprocess.eval_px`.
        timeout_s: a batch that takes longer is an error.

    Raises:
        BrokenSample: names shard, key and remedy.
        LoaderFailed: a worker died or was too slow.
    """
    assert 0 <= rank < world and batch >= 1
    warn_if_slow()
    own = len(range(rank, len(index), world))
    tickets = [
        Range(rank + start * world, min(batch, own - start), world)
        for start in range(0, own, batch)
    ]
    job = MakeEvalBatch(ShardReader(index), preprocess, px or preprocess.eval_px)
    demand = Demand(batch * job.px * job.px * 3, at_once=1, num_images=batch)
    pieces = sum(num_pieces(ticket.count, job.piece_images) for ticket in tickets)
    spec = LoaderSpec(workers=min(workers, pieces), timeout_s=timeout_s)
    return _all(Feed(job, spec, demand, torch.cuda.is_available()), tickets)


def _all(feed: Feed[Range, Part, EvalBatch], tickets: Sequence[Range]) -> Generator[EvalBatch]:
    try:
        yield from feed.batches(tickets)
    finally:
        feed.close()
