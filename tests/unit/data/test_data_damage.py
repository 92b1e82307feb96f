"""Every kind of damage through the real loader: named under strict, replaced under a budget.

Under a budget all ranks and workers must find the same replacements, and odd but whole images must
come out right under either policy.
"""

import io
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.augment import AugmentSpec, crop_box
from pipeline.data.bad import ATTEMPTS, BadSpec, Tally, replacement
from pipeline.data.batches import MicroBatch
from pipeline.data.decode import decode_train
from pipeline.data.evaluation_loader import eval_batches
from pipeline.data.loader import TrainLoader
from pipeline.data.loading import LoaderSpec
from pipeline.data.order import Order
from pipeline.data.preprocess import PreprocessSpec
from pipeline.data.reader import BrokenSample
from pipeline.plan.draws import Stream, keyed
from pipeline.spec import Failure
from tests.unit.data import damages

SIZES = [20, 24, 12, 40]
NUM_SAMPLES = sum(SIZES)
GLOBAL_BATCH, MICRO_BATCHES, SEED, PX = 32, 8, 3, 16
STRICT, BUDGET = BadSpec(), BadSpec(policy="budget", budget=0.5)
PLAIN = AugmentSpec(kind="none")
Damage = Callable[[Path, Any], set[int]]


@pytest.fixture
def load(fake: Any) -> Iterator[Callable[..., TrainLoader]]:
    """Make a loader of damaged shards."""
    loaders = []

    def make(made, bad, rank=0, world=1, workers=0, augment=PLAIN) -> TrainLoader:
        index = made.index()
        order = Order(len(index), SEED, lanes=16, window=8)
        stages = ((0, fake.settings(px=PX, micro_batches=MICRO_BATCHES)),)
        spec = LoaderSpec(workers=workers, lanes=16, window=8, timeout_s=60, bad=bad)
        plan = fake.plan(stages=stages)
        loader = TrainLoader(index, order, plan, GLOBAL_BATCH, rank, world, augment, SEED, spec)
        loaders.append(loader)
        return loader

    with damages.without_roots_rights():
        yield make
    for loader in loaders:
        loader.close()


def damage(made: Any, kind: Damage) -> set[int]:
    return kind(made.folder / "train" / "shard-000001.tar", made.index())


def take(loader: TrainLoader, first_step: int, count: int) -> list[list[MicroBatch]]:
    """Return steps, with images of their own."""
    steps = islice(loader.steps(first_step), count)
    return [[batch._replace(images=batch.images.clone()) for batch in step] for step in steps]


def asked(first_step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (epochs, ids) that the order asks for, by slot."""
    where = np.arange(first_step * GLOBAL_BATCH, (first_step + count) * GLOBAL_BATCH)
    return Order(NUM_SAMPLES, SEED, lanes=16, window=8).at(where)


def stand_in(sample_id: int, bad: set[int]) -> int:
    """Return whom the run must show for a sample."""
    tries = (replacement(SEED, sample_id, attempt, NUM_SAMPLES) for attempt in range(ATTEMPTS))
    return sample_id if sample_id not in bad else next(i for i in tries if i not in bad)


def by_slot(steps: list[list[MicroBatch]]) -> tuple[list[int], list[np.ndarray], list[list[int]]]:
    """Return ids, images and labels in the order of slots."""
    ids, images, labels = [], [], []
    for step in steps:
        for place in range(GLOBAL_BATCH // MICRO_BATCHES):
            for batch in step:
                ids.append(int(batch.ids[place]))
                images.append(batch.images[place].numpy())
                labels.append(batch.labels[place].tolist())
    return ids, images, labels


def replaced_in(steps: list[list[MicroBatch]]) -> list[tuple[int, int | str]]:
    return sorted(item[:2] for step in steps for batch in step for item in batch.replaced)


def same(a: MicroBatch, b: MicroBatch) -> bool:
    tensors = zip(a[2:5], b[2:5], strict=True)
    replaced = [[item[:2] for item in batch.replaced] for batch in (a, b)]
    return a[:2] == b[:2] and replaced[0] == replaced[1] and all(torch.equal(*p) for p in tensors)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", damages.TO_SHARDS)
def test_strict_ends_with_the_shard_and_the_sample(make_shards, load, kind, workers):
    made = make_shards(SIZES)
    damage(made, kind)
    with pytest.raises(BrokenSample) as error:
        take(load(made, STRICT, workers=workers), 0, 3)
    text = str(error.value)
    assert text.startswith(str(made.folder / "train" / "shard-000001.tar: sample "))
    assert "python -m data_prep verify" in text and "Traceback" not in text


@pytest.mark.parametrize("kind", damages.TO_SHARDS)
def test_a_budget_replaces_exactly_what_a_shard_lost(make_shards, make_jpeg, load, kind):
    made = make_shards(SIZES)
    bad = damage(made, kind)
    steps = take(load(made, BUDGET), 0, 6)
    epochs, wanted = asked(0, 6)
    ids, images, labels = by_slot(steps)
    assert ids == [stand_in(i, bad) for i in wanted.tolist()]
    assert labels == [[i % 10] for i in ids]
    gone = sorted((i, stand_in(i, bad)) for i in wanted.tolist() if i in bad)
    assert replaced_in(steps) == gone and len(gone) == 2 * len(bad) > 0
    for epoch, sample_id, shown, image in zip(epochs, wanted, ids, images, strict=True):
        rng = keyed(Stream.AUGMENT, SEED, int(epoch), int(sample_id))
        assert np.array_equal(image, decode_train(make_jpeg(shown), PX, PLAIN, 0, rng))


def test_what_was_replaced_says_where_and_why(make_shards, load):
    made = make_shards(SIZES)
    damage(made, damages.flipped_bits)
    steps = take(load(made, BUDGET), 0, 3)
    reasons = {item.sample_id: item.reason for s in steps for b in s for item in b.replaced}
    assert set(reasons) == {21, 30, 43}
    for sample_id, reason in reasons.items():
        assert reason.startswith(str(made.folder / "train" / "shard-000001.tar"))
        assert f"'s{sample_id:05d}'" in reason and "crc32c" in reason


@pytest.fixture
def images_of(make_jpeg) -> Callable[[dict[str, bytes]], Callable[[int], bytes]]:
    """Put the given images at ids 0, 7, 14, ... among good ones."""

    def place(special: dict[str, bytes]) -> Callable[[int], bytes]:
        at = dict(zip(range(0, NUM_SAMPLES, 7), special.values(), strict=False))
        return lambda i: at[i] if i in at else make_jpeg(i)

    return place


@pytest.mark.parametrize("name", damages.BROKEN_IMAGES)
def test_strict_names_an_image_that_was_broken_when_written(make_shards, images_of, load, name):
    made = make_shards(SIZES, images=images_of({name: damages.BROKEN_IMAGES[name]}))
    with pytest.raises(BrokenSample, match=r"shard-000000.tar: sample 's00000' \(row 0\): "):
        take(load(made, STRICT), 0, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_budget_replaces_every_kind_of_broken_image(make_shards, images_of, load, workers):
    made = make_shards(SIZES, images=images_of(damages.BROKEN_IMAGES))
    bad = {7 * number for number in range(len(damages.BROKEN_IMAGES))}
    steps = take(load(made, BUDGET, workers=workers), 0, 3)
    assert by_slot(steps)[0] == [stand_in(i, bad) for i in asked(0, 3)[1].tolist()]
    assert {i for i, _ in replaced_in(steps)} == bad
    reasons = [item.reason for step in steps for batch in step for item in batch.replaced]
    assert sum("too large" in reason for reason in reasons) == 2, "both bombs are told as such"


@pytest.mark.parametrize("bad", [STRICT, BUDGET], ids=["strict", "budget"])
def test_odd_images_are_no_damage_and_come_out_right(make_shards, images_of, load, bad):
    images = images_of(damages.ODD_IMAGES)
    made = make_shards(SIZES, images=images)
    steps = take(load(made, bad), 0, 3)
    assert replaced_in(steps) == []
    ids, pixels, _ = by_slot(steps)
    for sample_id, image in zip(ids, pixels, strict=True):
        if sample_id % 7 == 0:
            original = Image.open(io.BytesIO(images(sample_id))).convert("RGB")
            rng = keyed(Stream.AUGMENT, SEED, 0, sample_id)
            box = crop_box(original.width, original.height, PLAIN, rng)
            expected = original.crop(box).resize((PX, PX), Image.Resampling.BILINEAR)
            expected = np.asarray(expected)[:, :: -1 if rng.random() < 0.5 else 1]
            assert np.abs(image.astype(int) - expected).mean() < 1


@pytest.fixture
def ruined(make_shards, images_of) -> tuple[Any, set[int]]:
    """Shards with a bit of everything: a lost half, flipped bits, images that never were whole."""
    made = make_shards(SIZES, images=images_of(damages.BROKEN_IMAGES))
    bad = {7 * number for number in range(len(damages.BROKEN_IMAGES))}
    return made, bad | damage(made, damages.flipped_bits) | damage(made, damages.cut_in_half)


@pytest.mark.parametrize("workers", [1, 3])
def test_replacements_are_the_same_for_any_number_of_workers(ruined, load, workers):
    made, bad = ruined
    expected = take(load(made, BUDGET, augment=AugmentSpec()), 1, 5)
    assert {i for i, _ in replaced_in(expected)} == bad
    found = take(load(made, BUDGET, workers=workers, augment=AugmentSpec()), 1, 5)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_replacements_are_the_same_for_any_number_of_ranks(ruined, load, world):
    made, _ = ruined
    expected = take(load(made, BUDGET), 0, 4)
    for rank in range(world):
        own = take(load(made, BUDGET, rank, world, workers=rank % 2), 0, 4)
        for ours, step in zip(own, expected, strict=True):
            assert all(same(a, b) for a, b in zip(ours, step[rank::world], strict=True))


def test_a_resumed_run_replaces_as_one_that_never_stopped(ruined, load):
    made, _ = ruined
    whole = take(load(made, BUDGET), 0, 5)
    for first_step in (1, 4):
        resumed = take(load(made, BUDGET), first_step, 1)[0]
        assert all(same(a, b) for a, b in zip(resumed, whole[first_step], strict=True))


def test_a_shard_that_breaks_while_it_is_read_is_noticed_at_the_next_sample(make_shards, load):
    made = make_shards(SIZES)
    running = load(made, BUDGET).steps(0)
    assert [item for batch in next(running) for item in batch.replaced] == []
    bad = damage(made, damages.zeros)
    later = [[b._replace(images=b.images.clone()) for b in next(running)] for _ in range(2)]
    assert {i for i, _ in replaced_in(later)} == bad & set(asked(1, 2)[1].tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_is_gone_ends_the_attempt_whatever_the_policy(make_shards, load, workers):
    made = make_shards(SIZES)
    for tar in (made.folder / "train").glob("*.tar"):
        tar.unlink()
    with pytest.raises(BrokenSample, match=r"No such file.*the 16 samples tried in its place"):
        take(load(made, BUDGET, workers=workers), 0, 1)


def test_the_budget_is_spent_at_the_same_step_on_any_number_of_ranks(make_shards, load):
    """A quarter of the samples is lost: no rank may go on when another one stops."""
    made = make_shards(SIZES)
    damage(made, damages.deleted)
    ends = []
    for world in (1, 2, 4):
        ranks = [load(made, BUDGET, rank, world).steps(0) for rank in range(world)]
        tally = Tally(BadSpec(policy="budget", budget=0.1), NUM_SAMPLES, GLOBAL_BATCH)
        with pytest.raises(Failure, match=r"more than loader.bad.budget 0.1 .*shard-000001.tar"):
            while True:
                step = [batch for rank in ranks for batch in next(rank)]
                replaced = [item for batch in step for item in batch.replaced]
                tally.note(replaced)
                tally.add(len(replaced))
                tally.check()
        ends.append((tally.used, tally.bad))
    assert len(set(ends)) == 1 and ends[0][0] <= NUM_SAMPLES


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_never_replaces_a_sample(make_shards, load, workers):
    made = make_shards(SIZES)
    damage(made, damages.flipped_bits)
    spec = PreprocessSpec(eval_px=PX)
    with pytest.raises(BrokenSample, match=r"shard-000001.tar: sample 's00021'"):
        list(eval_batches(made.index(), spec, 0, 1, 16, workers=workers))
