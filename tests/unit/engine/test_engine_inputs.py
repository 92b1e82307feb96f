"""What the model sees of a micro-batch: augmented, normalised and mixed by keyed draws."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data.augment import AugmentSpec, draw
from pipeline.data.batches import MicroBatch, pack_ops
from pipeline.data.mix import mix
from pipeline.data.ops import apply_ops
from pipeline.data.preprocess import PreprocessSpec
from pipeline.engine.inputs import Inputs
from pipeline.models.efficientnet import EfficientNet, build
from pipeline.models.table import ModelSpec
from pipeline.optim.loss import soft_targets
from pipeline.plan.draws import Stream, keyed
from pipeline.plan.plan import StepPlan

B, PX, K, SEED = 8, 24, 5, 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> EfficientNet:
    return build(ModelSpec.parse({"name": "tiny"}, "test"), K, np.random.default_rng(0))


def inputs(device: torch.device = CPU, channels_last: bool = True, **spec: object) -> Inputs:
    return Inputs(PreprocessSpec.parse(spec, "test"), K, 0.1, SEED, device, channels_last)


def plan(mixup: float = 0.0, cutmix: float = 0.0, dropout: float = 0.3) -> StepPlan:
    return StepPlan(7, 0.5, 0, PX, 9.0, mixup, cutmix, dropout, 2, 0.1, 0.99)


def batch(index: int = 1, ops: np.ndarray | None = None) -> MicroBatch:
    pixels = np.random.default_rng(1).integers(0, 256, (B, PX, PX, 3), dtype=np.uint8)
    labels = torch.arange(B).view(B, 1) % K
    return MicroBatch(7, index, torch.from_numpy(pixels), labels, torch.arange(B), ops)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_are_normalised_channel_by_channel(channels_last: bool) -> None:
    mean, std = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)
    pixels = batch().images
    images = inputs(channels_last=channels_last, mean=mean, std=std).images(pixels)
    for channel in range(3):
        expected = (pixels[..., channel].float() - mean[channel]) / std[channel]
        assert torch.equal(images[:, channel], expected)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)


def test_a_batch_becomes_what_its_key_says(model: EfficientNet) -> None:
    """Images and targets are those of `mix` with the generator of (seed, step, micro-batch)."""
    one = inputs()
    images, targets, noise = one.train(batch(), plan(0.4, 0.4), model)
    soft = soft_targets(batch().labels, K, 0.1)
    rng = keyed(Stream.MIX, SEED, 7, 1)
    expected = mix(one.images(batch().images), soft, 0.4, 0.4, rng)
    assert torch.equal(images, expected[0]) and torch.equal(targets, expected[1])
    drawn = model.draw_noise(B, 0.3, keyed(Stream.NOISE, SEED, 7, 1))
    assert torch.equal(noise.dropout, drawn.dropout)
    assert torch.equal(noise.drop_path, drawn.drop_path)
    assert not torch.equal(one.train(batch(0), plan(0.4, 0.4), model)[0], images)


def test_labels_of_cut_images_are_weighed_as_the_plan_says(model: EfficientNet) -> None:
    """The official mean over the half of the micro-batch that is cut, or each by its own box."""
    official = plan(0.4, 0.4)._replace(cutmix_labels="mean")
    own, mean = (inputs().train(batch(), way, model) for way in (plan(0.4, 0.4), official))
    assert torch.equal(own[0], mean[0]), "images are the same"
    half = B // 2
    assert torch.equal(own[1][:half], mean[1][:half]) and not torch.equal(own[1], mean[1])
    soft = soft_targets(batch().labels, K, 0.1)
    expected = mix(own[0], soft, 0.4, 0.4, keyed(Stream.MIX, SEED, 7, 1), official_mean=True)
    assert torch.equal(mean[1], expected[1])


def test_a_sigmoid_loss_gets_every_label_whole(model: EfficientNet) -> None:
    labels = torch.full((B, 2), -1)
    labels[:, 0] = torch.arange(B) % K
    labels[0, 1] = 3
    pictures = batch()._replace(labels=labels)
    _, shared, _ = inputs().train(pictures, plan(), model)
    _, whole, _ = replace(inputs(), loss="sigmoid_mean").train(pictures, plan(), model)
    assert shared[0].tolist() == pytest.approx([0.47, 0.02, 0.02, 0.47, 0.02])
    assert whole[0].tolist() == pytest.approx([0.95, 0.05, 0.05, 0.95, 0.05])


def test_operations_left_to_the_device_give_what_a_worker_would_have_made(
    model: EfficientNet,
) -> None:
    ops = [
        draw(30, 30, PX, AugmentSpec(), 9.0, keyed(Stream.AUGMENT, SEED, n)).ops for n in range(B)
    ]
    finished = batch()
    pixels = finished.images.numpy().copy()
    for image, own in zip(pixels, ops, strict=True):
        apply_ops(image, own)
    by_worker = inputs().train(finished._replace(images=torch.from_numpy(pixels)), plan(), model)
    by_device = inputs().train(batch(ops=pack_ops(ops)), plan(), model)
    assert torch.equal(by_worker[0], by_device[0])
    assert not torch.equal(by_device[0], inputs().train(batch(), plan(), model)[0])


def test_evaluation_first_leaves_training_able_to_go_backward(model: EfficientNet) -> None:
    """What is kept between calls must not be a tensor of inference mode."""
    one = inputs()
    with torch.inference_mode():
        one.images(batch().images)
    images, _, _ = one.train(batch(), plan(), model)
    weight = torch.ones(3, requires_grad=True)
    (images * weight.view(1, 3, 1, 1)).sum().backward()
    assert weight.grad is not None and torch.isfinite(weight.grad).all()


@pytest.mark.gpu
def test_a_gpu_sees_the_same_numbers(model: EfficientNet, ops: Callable[[], np.ndarray]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.device("cuda", torch.cuda.current_device())
    there = inputs(device).train(batch(ops=ops()), plan(0.4, 0.4), model)
    here = inputs().train(batch(ops=ops()), plan(0.4, 0.4), model)
    torch.testing.assert_close(there[0].cpu(), here[0])
    torch.testing.assert_close(there[1].cpu(), here[1])
    assert torch.equal(there[2].dropout.cpu(), here[2].dropout)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu(model: EfficientNet, ops: Callable[[], np.ndarray]) -> None:
    """Else the step's kernels would start late, behind the ones of the step before."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    one = inputs(torch.device("cuda", torch.cuda.current_device()))
    here = batch(ops=ops())
    one.train(here, plan(), model)  # what is made once may wait
    pinned = here._replace(images=here.images.pin_memory(), labels=here.labels.pin_memory())
    torch.cuda.set_sync_debug_mode("error")
    try:
        one.train(pinned, plan(), model)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def ops() -> Callable[[], np.ndarray]:
    """Draw a micro-batch's operations, packed."""

    def packed() -> np.ndarray:
        rngs = (keyed(Stream.AUGMENT, SEED, n) for n in range(B))
        return pack_ops([draw(30, 30, PX, AugmentSpec(), 9.0, rng).ops for rng in rngs])

    return packed
