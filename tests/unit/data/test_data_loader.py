"""The training loader: workers, ranks, stages and restarts change nothing but who does the work."""

import io
import multiprocessing
import tarfile
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.build import build
from data_prep.options import BuildSpec
from data_prep.sources import Source
from data_prep.stages import Job
from pipeline.data.augment import AugmentSpec, Op, crop_box
from pipeline.data.batches import OP, MicroBatch
from pipeline.data.index import SplitIndex
from pipeline.data.loader import TrainLoader
from pipeline.data.loading import LoaderSpec
from pipeline.data.ops import apply_ops
from pipeline.data.order import Order, positions
from pipeline.data.places import LocalPlaces
from pipeline.data.reader import BrokenSample, ShardReader
from pipeline.data.stream import read_tar
from pipeline.plan.draws import Stream, keyed
from pipeline.spec import Misuse

GLOBAL_BATCH = 32


@pytest.fixture
def load(shards, fake):
    """Make a loader of the small shards; everything can be set by name."""
    loaders = []

    def make(made=shards, plan=None, rank=0, world=1, global_batch=GLOBAL_BATCH, seed=3, **more):
        index = more.pop("index", None) or made.index()
        augment, ahead_steps = more.pop("augment", AugmentSpec()), more.pop("ahead_steps", 0)
        order = Order(len(index), seed, lanes=16, window=8)
        plan = plan or fake.plan(stages=((0, fake.settings(micro_batches=8)),))
        spec = LoaderSpec(**{"workers": 0, "lanes": 16, "window": 8, "timeout_s": 60, **more})
        share = global_batch, rank, world
        loader = TrainLoader(index, order, plan, *share, augment, seed, spec, ahead_steps)
        loaders.append(loader)
        return loader

    yield make
    for loader in loaders:
        loader.close()


def take(loader: TrainLoader, first_step: int, count: int) -> list[list[MicroBatch]]:
    return list(islice(loader.steps(first_step), count))


def in_slots(batches: list[MicroBatch], micro_batches: int) -> np.ndarray:
    """Return the sample ids of a step by slot."""
    ids = np.full(GLOBAL_BATCH, -1)
    for batch in batches:
        ids[batch.index :: micro_batches] = batch.ids
    return ids


def same(a: MicroBatch, b: MicroBatch) -> bool:
    tensors = zip(a[2:5], b[2:5], strict=True)
    return (a[:2], a[5:]) == (b[:2], b[5:]) and all(torch.equal(x, y) for x, y in tensors)


def test_a_micro_batch_has_the_promised_shapes(load):
    (step,) = take(load(), 5, 1)
    assert [(batch.step, batch.index) for batch in step] == [(5, j) for j in range(8)]
    batch = step[0]
    assert batch.images.shape == (4, 16, 16, 3) and batch.images.dtype == torch.uint8
    assert batch.labels.shape == (4, 1) and batch.labels.dtype == torch.int64
    assert batch.ids.shape == (4,) and batch.ids.dtype == torch.int64
    assert torch.equal(batch.labels[:, 0], batch.ids % 10)


def test_every_sample_comes_once_per_epoch(load):
    ids = np.concatenate([in_slots(step, 8) for step in take(load(), 0, 10)])
    for epoch in range(3):
        assert sorted(ids[epoch * 103 : epoch * 103 + 103]) == list(range(103))
    assert not np.array_equal(ids[:103], ids[103:206])


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
def test_ids_and_pixels_are_the_same_for_any_number_of_workers(load, workers):
    expected = take(load(), 2, 3)
    for ours, theirs in zip(take(load(workers=workers), 2, 3), expected, strict=True):
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ids_and_pixels_are_the_same_for_any_number_of_ranks(load, world):
    expected = take(load(), 0, 5)
    ranks = [take(load(rank=rank, world=world), 0, 5) for rank in range(world)]
    for number, step in enumerate(expected):
        together = sorted((b for rank in ranks for b in rank[number]), key=lambda b: b.index)
        assert all(same(a, b) for a, b in zip(together, step, strict=True))
    assert [batch.index for batch in ranks[1][0]] == list(range(1, 8, world))


def test_ranks_with_workers_of_their_own_agree_too(load):
    expected = take(load(), 3, 2)
    for rank in range(2):
        ours = take(load(rank=rank, world=2, workers=2), 3, 2)
        for mine, step in zip(ours, expected, strict=True):
            assert all(same(a, b) for a, b in zip(mine, step[rank::2], strict=True))


@pytest.mark.parametrize("first_step", [1, 3, 4, 9, 500])
def test_a_start_at_any_step_goes_on_as_if_it_had_never_stopped(load, first_step):
    whole = take(load(), 0, 12) if first_step < 10 else take(load(), first_step - 3, 6)[3 - 3 :]
    base = 0 if first_step < 10 else first_step - 3
    resumed = take(load(), first_step, 2)
    for number, step in enumerate(resumed):
        expected = whole[first_step + number - base]
        assert all(same(a, b) for a, b in zip(step, expected, strict=True))


def test_resuming_twice_and_over_the_end_of_an_epoch_loses_and_repeats_nothing(load):
    whole = [in_slots(step, 8) for step in take(load(), 0, 9)]
    parts = [*take(load(), 0, 3), *take(load(), 3, 1), *take(load(), 4, 5)]
    assert np.array_equal(whole, [in_slots(step, 8) for step in parts])


def test_one_loader_can_start_again(load):
    loader = load(workers=1)
    first = take(loader, 4, 2)
    again = take(loader, 4, 2)
    assert all(
        same(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_another_seed_gives_other_samples_and_other_crops(load):
    (a,), (b,) = take(load(), 0, 1), take(load(seed=4), 0, 1)
    assert not np.array_equal(in_slots(a, 8), in_slots(b, 8))


def test_a_sample_looks_different_in_every_epoch(load, make_shards):
    made = make_shards([8])
    steps = take(load(made=made), 0, 1)
    by_id = {}
    for batch in steps[0]:
        for image, sample_id in zip(batch.images, batch.ids.tolist(), strict=True):
            by_id.setdefault(sample_id, []).append(image)
    assert all(len(images) == 4 for images in by_id.values())
    different = [not torch.equal(v[0], v[n]) for v in by_id.values() for n in (1, 2, 3)]
    assert np.mean(different) > 0.9


def test_a_new_stage_changes_size_and_micro_batches_and_keeps_the_workers(load, fake):
    stages = (
        (0, fake.settings(px=8, randaugment=0, micro_batches=2)),
        (2, fake.settings(px=24, randaugment=10.0, micro_batches=4)),
    )
    loader = load(plan=fake.plan(total_steps=4, stages=stages), workers=1)
    seen, workers = [], set()
    for step in loader.steps(0):
        seen.append((len(step), tuple(step[0].images.shape)))
        workers |= {process.pid for process in multiprocessing.active_children()}
    assert seen == [(2, (16, 8, 8, 3))] * 2 + [(4, (8, 24, 24, 3))] * 2
    assert len(workers) == 1


def test_steps_end_with_the_plan_and_take_their_workers_along(load, fake):
    loader = load(plan=fake.plan(total_steps=7), workers=2)
    assert [step[0].step for step in loader.steps(5)] == [5, 6]
    assert not multiprocessing.active_children()
    assert list(loader.steps(7)) == []


def test_waiting_for_data_is_measured(load):
    loader = load()
    take(loader, 0, 1)
    assert 0 < loader.wait_s < 5


def test_samples_are_those_of_the_order_at_every_step_and_micro_batch(load, fake):
    """Ids are computed for blocks of steps: compare them with the order, slot by slot."""
    stages = ((0, fake.settings(micro_batches=2)), (130, fake.settings(micro_batches=16)))
    for rank, world in ((0, 1), (1, 2)):
        loader = load(plan=fake.plan(stages=stages), rank=rank, world=world, workers=1)
        for step in islice(loader.steps(125), 10):
            for batch in step:
                count = 2 if batch.step < 130 else 16
                where = positions(batch.step, batch.index, GLOBAL_BATCH, count)
                _, ids = Order(103, 3, lanes=16, window=8).at(where)
                assert batch.ids.tolist() == ids.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_kept_stay_as_they_were(load, workers):
    """Memory is used again only when nobody looks at it any more."""
    kept = take(load(workers=workers), 0, 12)
    for number, step in enumerate(kept):
        (again,) = take(load(), number, 1)
        assert all(same(a, b) for a, b in zip(step, again, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_reported_and_bounded(load, fake, workers):
    stages = ((0, fake.settings(px=8, micro_batches=8)), (5, fake.settings(px=32)))
    loader = load(plan=fake.plan(total_steps=40, stages=stages), workers=workers)
    steps = loader.steps(0)
    next(steps)
    memory = loader.memory()
    assert memory.slot_bytes == 8 * 32 * 32 * 3  # of the largest stage, from the start
    assert memory.workers == workers and (memory.workers_bytes > 0) == (workers > 0)
    for _ in steps:
        pass
    sizes = [slot.num_bytes for slot in loader._feed._ring._memory]
    assert len(sizes) <= memory.slots and max(sizes) <= memory.slot_bytes + 4096


def test_shards_from_far_are_asked_for_ahead_of_their_time(load, shards):
    """At the start all steps up to `ahead_steps` on, then one more with each step."""
    asked = []

    class Noting(LocalPlaces):
        def expect(self, shards):
            asked.append(set(shards))

    index = shards.index()
    index.places = Noting(index.folder, index.shards)
    steps = load(index=index, ahead_steps=3, rank=1, world=2).steps(4)
    order = Order(103, 3, lanes=16, window=8)
    for last in range(7, 12):
        next(steps)
        needed = [order.at(positions(n, 1, GLOBAL_BATCH, 2))[1] for n in range(4, last + 1)]
        expected = [{index.locate(i)[0] for i in ids.tolist()} for ids in needed]
        assert asked == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_ops_are_left_to_the_device_where_the_recipe_says_so(load, fake, workers):
    """The same draws: the crop and the ops together give what a worker would have made."""
    plan = fake.plan(stages=((0, fake.settings(px=24, randaugment=9.0, micro_batches=2)),))
    ours, theirs = (
        take(load(plan=plan, workers=workers, augment=AugmentSpec(device=device)), 0, 1)[0]
        for device in ("gpu", "cpu")
    )
    for batch, finished in zip(ours, theirs, strict=True):
        assert finished.ops is None and batch.ops is not None
        assert batch.ops.shape == (16, 2) and batch.ops.dtype == OP
        images = batch.images.numpy().copy()
        assert not np.array_equal(images, finished.images.numpy())
        for image, ops in zip(images, batch.ops.tolist(), strict=True):
            apply_ops(image, [Op(*op) for op in ops if op[0] >= 0])
        assert np.array_equal(images, finished.images.numpy())


def test_files_travel_as_they_are_where_the_gpu_decodes(load, fake, shards):
    decode_device = pytest.importorskip("pipeline.data.decode_device")
    plan = fake.plan(stages=((0, fake.settings(px=24, micro_batches=2)),))
    (step,) = take(load(plan=plan, workers=1, decode="gpu"), 0, 1)
    reader = ShardReader(shards.index())
    for batch in step:
        assert batch.images.shape == (16, decode_device.row_bytes(24)) and batch.ops is not None
        for row, sample_id in zip(batch.images.numpy(), batch.ids.tolist(), strict=True):
            assert reader.read(sample_id) in row.tobytes()


def test_samples_with_several_labels_are_padded(load, make_shards):
    made = make_shards([32], labels=lambda i: tuple(range(i % 3 + 1)))
    (step,) = take(load(made=made), 0, 1)
    for batch in step:
        for own, sample_id in zip(batch.labels.tolist(), batch.ids.tolist(), strict=True):
            assert [label for label in own if label >= 0] == list(range(sample_id % 3 + 1))
            assert set(own[sample_id % 3 + 1 :]) <= {-1}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_bit_stops_the_training_with_file_and_key(load, make_shards, workers):
    made = make_shards([20, 12])
    tar = made.folder / "train" / "shard-000001.tar"
    raw = bytearray(tar.read_bytes())
    raw[int(made.index().entry(25)["offset"]) + 200] ^= 1
    tar.write_bytes(raw)
    with pytest.raises(BrokenSample) as error:
        take(load(made=made, workers=workers), 0, 1)
    assert str(error.value).startswith(str(tar)) and "'s00025'" in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_was_broken_when_written_is_named(load, make_shards, make_jpeg, workers):
    made = make_shards([32], images=lambda i: make_jpeg(i)[: 400 if i == 9 else None])
    with pytest.raises(BrokenSample, match=r"shard-000000.tar: sample 's00009' .*whole image"):
        take(load(made=made, workers=workers), 0, 1)


def test_a_missing_shard_is_named_by_a_worker(load, make_shards):
    made = make_shards([20, 12])
    (made.folder / "train" / "shard-000001.tar").unlink()
    with pytest.raises(BrokenSample, match=r"shard-000001.tar: .*No such file"):
        take(load(made=made, workers=2), 0, 1)


def test_numbers_that_do_not_divide_are_refused_at_their_stage(load, fake):
    plan = fake.plan(
        stages=((0, fake.settings(micro_batches=4)), (3, fake.settings(micro_batches=2)))
    )
    loader = load(plan=plan, world=4)
    assert len(take(loader, 2, 1)) == 1
    with pytest.raises(Misuse, match="world size 4"):
        take(loader, 2, 2)


def test_shards_that_data_prep_built_are_read_by_both_loaders(load, tmp_path, make_jpeg, fake):
    """The formats fit together: the same images and classes come back from index and stream."""
    for n in range(40):
        path = tmp_path / "raw" / f"class{n % 4}" / f"{n:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_jpeg(n))
    spec = BuildSpec(name="built", shard_samples=16)
    manifest = build(Job((Source(tmp_path / "raw"),), tmp_path / "out", spec))
    index = SplitIndex(tmp_path / "out", manifest, "train")
    reader = ShardReader(index)
    classes = {make_jpeg(n): n % 4 for n in range(40)}
    assert {reader.read(i): index.labels(i)[0] for i in range(40)} == classes
    tars = [index.tar(number) for number in range(len(index.shards))]
    streamed = [sample for tar in tars for sample in read_tar(tar, manifest.labels)]
    assert {sample.image: sample.labels[0] for sample in streamed} == classes
    order = Order(40, 0, lanes=16)
    plan, spec = fake.plan(total_steps=3), LoaderSpec(workers=1, lanes=16)
    loader = TrainLoader(index, order, plan, GLOBAL_BATCH, 0, 1, AugmentSpec(), 0, spec)
    assert sum(len(batch.ids) for step in loader.steps(0) for batch in step) == 96


def test_real_photographs_come_out_as_torchvision_makes_them(real_data, make_shards, load, fake):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    with tarfile.open(real_data / "imagenet-sample.tar") as tar:
        members = islice((m for m in tar if m.isfile()), 0, 320, 20)
        photographs = [file.read() for m in members if (file := tar.extractfile(m))]
    made = make_shards([16], images=lambda i: photographs[i])
    plan = fake.plan(stages=((0, fake.settings(px=64, randaugment=0, micro_batches=1)),))
    (step,) = take(load(made=made, plan=plan, global_batch=16), 0, 1)
    for image, sample_id in zip(step[0].images, step[0].ids.tolist(), strict=True):
        rng = keyed(Stream.AUGMENT, 3, 0, sample_id)
        original = Image.open(io.BytesIO(photographs[sample_id])).convert("RGB")
        left, top, right, bottom = crop_box(original.width, original.height, AugmentSpec(), rng)
        size = [bottom - top, right - left]
        expected = functional.resized_crop(original, top, left, *size, [64, 64])
        flipped = functional.horizontal_flip(expected) if rng.random() < 0.5 else expected
        assert np.array_equal(image.numpy(), np.asarray(flipped))
