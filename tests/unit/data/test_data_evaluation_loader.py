"""Evaluation: every sample exactly once, whatever the ranks, batches and workers."""

import multiprocessing

import numpy as np
import pytest

from pipeline.data.decode import decode_eval
from pipeline.data.evaluation_loader import eval_batches
from pipeline.data.preprocess import PreprocessSpec
from pipeline.data.reader import BrokenSample

SPEC = PreprocessSpec(eval_px=16, eval_resize="squash")


def ids_of(batches) -> list[int]:
    return [sample_id for batch in batches for sample_id in batch.ids.tolist()]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_every_sample_is_seen_exactly_once_over_all_ranks(shards, world, batch):
    ranks = [
        ids_of(eval_batches(shards.index(), SPEC, r, world, batch, px=4)) for r in range(world)
    ]
    assert sorted(sum(ranks, [])) == list(range(103))
    assert all(ids == list(range(rank, 103, world)) for rank, ids in enumerate(ranks))


def test_more_ranks_than_samples_leave_some_with_nothing(make_shards):
    index = make_shards([2]).index()
    ranks = [ids_of(eval_batches(index, SPEC, rank, 4, 8)) for rank in range(4)]
    assert ranks == [[0], [1], [], []]


def test_batches_hold_what_decode_eval_gives(shards, make_jpeg):
    batches = list(eval_batches(shards.index(), SPEC, 1, 2, 20))
    assert [len(batch.ids) for batch in batches] == [20, 20, 11]
    for batch in batches:
        assert batch.images.shape[1:] == (16, 16, 3)
        assert np.array_equal(batch.labels[:, 0].numpy(), batch.ids.numpy() % 10)
    expected = decode_eval(make_jpeg(int(batches[1].ids[3])), SPEC, 16)
    assert np.array_equal(batches[1].images[3].numpy(), expected)


def test_workers_change_nothing_and_leave_with_the_last_batch(shards):
    alone = list(eval_batches(shards.index(), SPEC, 0, 1, 16))
    helped = list(eval_batches(shards.index(), SPEC, 0, 1, 16, workers=2))
    assert ids_of(alone) == ids_of(helped)
    assert all((a.images == b.images).all() for a, b in zip(alone, helped, strict=True))
    assert not multiprocessing.active_children()


def test_another_size_can_be_asked_for(shards):
    batch = next(iter(eval_batches(shards.index(), SPEC, 0, 1, 4, px=40)))
    assert batch.images.shape == (4, 40, 40, 3)


def test_a_broken_image_is_named(make_shards, make_jpeg):
    index = make_shards([5], images=lambda i: make_jpeg(i)[: 300 if i == 4 else None]).index()
    with pytest.raises(BrokenSample, match=r"shard-000000.tar: sample 's00004'"):
        list(eval_batches(index, SPEC, 0, 1, 8))
