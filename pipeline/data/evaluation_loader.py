"""Evaluation batches: every sample of a split exactly once over all ranks, nothing padded.

Rank r takes the ids r, r + world, ...; ranks may get different numbers of batches, so the caller
must not talk to other ranks batch by batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.batches import EvalBatch, pad_labels
from pipeline.data.decode import BrokenImage, decode_eval
from pipeline.data.index import SplitIndex
from pipeline.data.loading import LoaderSpec
from pipeline.data.preprocess import PreprocessSpec
from pipeline.data.reader import ShardReader
from pipeline.data.workers import in_workers


@dataclass(frozen=True)
class MakeEvalBatch:
    """The job of a worker: sample ids become a batch."""

    reader: ShardReader
    preprocess: PreprocessSpec
    px: int

    def __call__(self, ids: np.ndarray) -> EvalBatch:
        images = np.empty((len(ids), self.px, self.px, 3), np.uint8)
        for image, sample_id in zip(images, ids.tolist(), strict=True):
            data = self.reader.read(sample_id)
            try:
                image[:] = decode_eval(data, self.preprocess, self.px)
            except BrokenImage as error:
                raise self.reader.broken(sample_id, str(error)) from None
        labels = pad_labels([self.reader.index.labels(sample_id) for sample_id in ids.tolist()])
        return EvalBatch(torch.from_numpy(images), labels, torch.from_numpy(ids))


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
    own = np.arange(rank, len(index), world, dtype=np.int64)
    tickets = [own[start : start + batch] for start in range(0, len(own), batch)]
    job = MakeEvalBatch(ShardReader(index), preprocess, px or preprocess.eval_px)
    spec = LoaderSpec(workers=min(workers, len(tickets)), timeout_s=timeout_s)
    return in_workers(job, tickets, spec, torch.cuda.is_available())
