"""The operations in torch give the very bytes of those on the CPU, for every op and any mixture."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.augment import AugmentSpec, draw
from pipeline.data.batches import pack_ops
from pipeline.data.loader import TrainLoader
from pipeline.data.loading import LoaderSpec
from pipeline.data.ops import OPS, Op, apply_ops, box_op
from pipeline.data.ops_device import apply_ops_batch
from pipeline.data.order import Order
from pipeline.plan.draws import Stream, keyed

MAGNITUDES = (0.1, 2.5, 5, 6.67, 10, 13.3, 20, 30)
CPU = torch.device("cpu")


def pictures(px: int) -> np.ndarray:
    """Noise, a smooth picture, narrow ranges, two values, one value: (6, px, px, 3) uint8."""
    rng = np.random.default_rng(px)
    noise = rng.integers(0, 256, (px, px, 3), dtype=np.uint8)
    few = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(few.resize((px, px), Image.Resampling.BICUBIC))
    narrow = rng.integers(100, 140, (px, px, 3), dtype=np.uint8)
    two = rng.integers(0, 2, (px, px, 3), dtype=np.uint8)
    return np.stack([noise, smooth, narrow, two, np.full_like(two, 77), np.zeros_like(two)])


def on_the_cpu(images: np.ndarray, ops: list[tuple[Op, ...]]) -> np.ndarray:
    done = images.copy()
    for image, own in zip(done, ops, strict=True):
        apply_ops(image, own)
    return done


def assert_same(images: np.ndarray, ops: list[tuple[Op, ...]], device: torch.device = CPU) -> None:
    there = torch.from_numpy(images).to(device)
    result = apply_ops_batch(there, ops)
    assert result.device == there.device and result.dtype == torch.uint8
    expected = on_the_cpu(images, ops)
    for number, own in enumerate(ops):
        names = [OPS[op.code] for op in own]
        difference = np.abs(result[number].cpu().numpy().astype(int) - expected[number])
        assert difference.max(initial=0) == 0, (names, own, difference.max())


SPECS = (
    AugmentSpec(color_jitter=0.8, erase=0.5, erase_with="grey"),
    AugmentSpec(kind="randaugment_torchvision", cutout_fraction=0.3),
    AugmentSpec(kind="randaugment_torchvision", warp="bilinear", erase=0.5),
    AugmentSpec(kind="autoaugment_v0", reference_px=300),
)


@pytest.fixture(scope="module")
def every_op() -> Callable[[int], list[tuple[Op, ...]]]:
    """Return one op for each sample: all that is ever drawn at these magnitudes, of any sign."""

    def collect(px: int) -> list[tuple[Op, ...]]:
        found: dict[tuple[int, float], tuple[Op, ...]] = {}
        for spec in SPECS:
            for number, magnitude in enumerate(MAGNITUDES * 9):
                rng = keyed(Stream.AUGMENT, 1, number)
                for op in draw(100, 80, px, spec, magnitude, rng).ops:
                    found[op.code, op.value] = (op,)
        return list(found.values())

    return collect


@pytest.mark.parametrize("px", [1, 2, 3, 17, 64])
def test_every_operation_gives_the_bytes_of_the_cpu(px, every_op):
    ops = every_op(px)
    if px == 64:
        assert {OPS[own[0].code] for own in ops} == set(OPS), "an operation is never drawn"
    images = pictures(px)
    assert_same(images[np.arange(len(ops)) % len(images)], ops)


@pytest.mark.parametrize("name", [name for name in OPS if name.startswith("Rotate")])
def test_quarter_turns_and_their_neighbours_are_exact(name):
    code = OPS.index(name)
    angles = [0.0, 1e-9, 30.0, 45.0, 89.999, 90.0, 180.0, 270.0, 360.0, -90.0, -30.0, 725.0]
    for px in (2, 9, 32):
        noise = pictures(px)[0]
        assert_same(np.stack([noise] * len(angles)), [(Op(code, angle),) for angle in angles])


def test_every_way_to_cover_an_image_is_exact():
    """Boxes in the middle, at the edges, without width, larger than the image."""
    noise = np.stack([pictures(20)[0]] * 15)
    boxes = [(3, 4, 9, 12), (0, 0, 20, 20), (5, 5, 5, 9), (0, 7, 4, 8), (18, 15, 40, 40)]
    ops = [
        (box_op(name, box, seed),)
        for name, seed in (("GreyBox", 0), ("NoiseBox", 0), ("NoiseBox", 2**32 - 1))
        for box in boxes
    ]
    assert_same(noise, ops)


def test_a_chain_of_operations_is_applied_in_its_order():
    """Each sample has its own number of them, none included."""
    spec = AugmentSpec(num_layers=4)
    images = pictures(32)
    ops = [
        draw(60, 50, 32, spec, 12.0, keyed(Stream.AUGMENT, 0, number)).ops[:number]
        for number in range(len(images))
    ]
    assert [len(own) for own in ops] == [0, 1, 2, 3, 4, 4]
    assert_same(images, ops)
    assert np.array_equal(apply_ops_batch(torch.from_numpy(images), ops)[0].numpy(), images[0])


def test_packed_operations_are_the_same_as_a_list_of_them():
    images = torch.from_numpy(pictures(16))
    spec = AugmentSpec()
    ops = [draw(9, 9, 16, spec, 9.0, keyed(Stream.AUGMENT, 2, n)).ops for n in range(len(images))]
    assert torch.equal(apply_ops_batch(images, ops), apply_ops_batch(images, pack_ops(ops)))


def test_a_sample_does_not_depend_on_its_neighbours():
    images = torch.from_numpy(pictures(24))
    ops = [
        draw(9, 9, 24, AugmentSpec(), 9.0, keyed(Stream.AUGMENT, 3, n)).ops
        for n in range(len(images))
    ]
    together = apply_ops_batch(images, ops)
    for number, own in enumerate(ops):
        alone = apply_ops_batch(images[number : number + 1], [own])
        assert torch.equal(alone[0], together[number])


def test_the_images_that_came_in_are_left_as_they_are():
    images = torch.from_numpy(pictures(16))
    before = images.clone()
    for code in range(len(OPS)):
        apply_ops_batch(images, [(Op(code, 1.0, 3, 3),)] * len(images))
    assert torch.equal(images, before)


def test_no_images_and_no_operations_are_fine():
    none = torch.empty(0, 8, 8, 3, dtype=torch.uint8)
    assert apply_ops_batch(none, []).shape == none.shape
    images = torch.from_numpy(pictures(8))
    assert torch.equal(apply_ops_batch(images, [()] * len(images)), images)


def test_ops_for_another_number_of_images_are_refused():
    with pytest.raises(AssertionError, match="ops of 2 samples for 6 images"):
        apply_ops_batch(torch.from_numpy(pictures(8)), [(), ()])


def test_a_loader_that_leaves_operations_to_the_device_loses_none(shards, fake):
    """augment.device decides who applies them, and not a byte of the result."""

    def images(device: Literal["cpu", "gpu"]) -> list[torch.Tensor]:
        index, order = shards.index(), Order(103, 3, lanes=16, window=8)
        spec, plan = LoaderSpec(workers=0, lanes=16, window=8), fake.plan(4)
        augment = AugmentSpec(color_jitter=0.4, erase=0.5, device=device)
        loader = TrainLoader(index, order, plan, 32, 0, 1, augment, 3, spec)
        batches = [batch for step in loader.steps(0) for batch in step]
        assert all((batch.ops is None) == (device == "cpu") for batch in batches)
        empty = np.empty((8, 0))
        return [apply_ops_batch(b.images, empty if b.ops is None else b.ops) for b in batches]

    for worker, there in zip(images("cpu"), images("gpu"), strict=True):
        assert torch.equal(worker, there)


def test_real_images_give_the_bytes_of_the_cpu(real_data):
    import io
    import tarfile

    images = []
    with tarfile.open(real_data / "imagenet-sample.tar") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and member.name.lower().endswith((".jpg", ".jpeg")):
                picture = Image.open(io.BytesIO(file.read())).convert("RGB").resize((160, 160))
                images.append(np.asarray(picture))
            if len(images) == 64:
                break
    spec = AugmentSpec()
    ops = [draw(9, 9, 160, spec, 15.0, keyed(Stream.AUGMENT, 4, n)).ops for n in range(64)]
    assert_same(np.stack(images), ops)


@pytest.mark.gpu
@pytest.mark.parametrize("px", [1, 3, 64, 224])
def test_a_gpu_gives_the_bytes_of_the_cpu(px, every_op):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    ops = every_op(px)
    images = pictures(px)
    assert_same(images[np.arange(len(ops)) % len(images)], ops, torch.device("cuda"))


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    images = torch.from_numpy(pictures(32)).cuda()
    ops = [
        draw(9, 9, 32, AugmentSpec(num_layers=20), 9.0, keyed(Stream.AUGMENT, 5, n)).ops
        for n in range(len(images))
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        apply_ops_batch(images, ops)
    finally:
        torch.cuda.set_sync_debug_mode("default")
