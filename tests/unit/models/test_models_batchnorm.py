"""Running statistics change once per step, by the mean over all micro-batches of all ranks."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.models.batchnorm import (
    StepBatchNorm2d,
    commit_statistics,
    discard_statistics,
    step_batch_norms,
)
from pipeline.models.efficientnet import EfficientNet

Make = Callable[..., EfficientNet]
Images = Callable[[int, int], torch.Tensor]


def maps(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Draw feature maps (4, 6, 5, 5) with a mean of 1 and a deviation of 3."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(4, 6, 5, 5, generator=generator) * 3 + 1).to(dtype)


def test_one_micro_batch_equals_plain_batchnorm() -> None:
    ours, plain = StepBatchNorm2d(6, momentum=0.1), nn.BatchNorm2d(6, eps=1e-3, momentum=0.1)
    for seed in range(3):
        inputs = [maps(seed).requires_grad_() for _ in range(2)]
        outputs = [layer(x) for layer, x in zip((ours, plain), inputs, strict=True)]
        for output in outputs:
            output.square().mean().backward()
        commit_statistics(ours, 1, None, 1)
        torch.testing.assert_close(outputs[0], outputs[1])
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    torch.testing.assert_close(ours.eval()(maps(9)), plain.eval()(maps(9)))


def test_several_micro_batches_enter_by_their_mean() -> None:
    layer = StepBatchNorm2d(6, momentum=0.25)
    for seed in range(3):
        layer(maps(seed))
    commit_statistics(layer, 3, None, 3)
    means = torch.stack([maps(s).mean((0, 2, 3)) for s in range(3)]).mean(0)
    variances = torch.stack([maps(s).var((0, 2, 3)) for s in range(3)]).mean(0)
    torch.testing.assert_close(layer.running_mean, 0.25 * means)
    torch.testing.assert_close(layer.running_var, 0.75 + 0.25 * variances)


def test_nothing_moves_before_the_commit_and_sums_are_empty_after() -> None:
    layer = StepBatchNorm2d(6)
    layer(maps(0))
    assert layer.running_mean.eq(0).all() and layer.running_var.eq(1).all()
    assert layer.mean_sum.ne(0).all()
    commit_statistics(layer, 1, None, 1)
    assert layer.running_mean.ne(0).all()
    assert layer.mean_sum.eq(0).all() and layer.var_sum.eq(0).all()


def test_discarded_statistics_leave_no_trace() -> None:
    rehearsed, fresh = StepBatchNorm2d(6), StepBatchNorm2d(6)
    rehearsed(maps(5))
    discard_statistics(rehearsed)
    for layer in (rehearsed, fresh):
        layer(maps(0))
        commit_statistics(layer, 1, None, 1)
    assert torch.equal(rehearsed.running_mean, fresh.running_mean)
    assert torch.equal(rehearsed.running_var, fresh.running_var)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_ranks_together_commit_what_one_would(
    order: tuple[int, ...], tiny: Make, images: Images
) -> None:
    """Two ranks with half of the micro-batches each, in any order, and one flat reduction."""
    batches = images(16, 16).split(4)
    alone, first, second = tiny(), tiny(), tiny()
    for batch in batches:
        alone(batch)
    for model, mine in ((first, order[:2]), (second, order[2:])):
        for index in mine:
            model(batches[index])
    sent: list[torch.Tensor] = []

    def add_sent(flat: torch.Tensor) -> None:
        flat.add_(sent[0])

    commit_statistics(copy.deepcopy(second), 2, lambda flat: sent.append(flat.clone()), 4)
    commit_statistics(first, 2, add_sent, 4)
    commit_statistics(alone, 4, None, 4)
    assert len(sent) == 1 and sent[0].ndim == 1
    for a, b in zip(step_batch_norms(alone), step_batch_norms(first), strict=True):
        torch.testing.assert_close(a.running_mean, b.running_mean)
        torch.testing.assert_close(a.running_var, b.running_var)


def test_a_rank_without_work_still_commits(tiny: Make, images: Images) -> None:
    busy, idle = tiny(), tiny()
    busy(images(4, 16))
    sent: list[torch.Tensor] = []

    def add_sent(flat: torch.Tensor) -> None:
        flat.add_(sent[0])

    commit_statistics(copy.deepcopy(busy), 1, lambda flat: sent.append(flat.clone()), 1)
    commit_statistics(idle, 0, add_sent, 1)
    commit_statistics(busy, 1, None, 1)
    for name, buffer in idle.named_buffers():
        assert torch.equal(buffer, busy.get_buffer(name)), name


def test_missing_micro_batches_are_noticed(tiny: Make) -> None:
    with pytest.raises(AssertionError, match="1 of 2 micro-batches"):
        commit_statistics(tiny(), 1, None, 2)


def test_a_model_without_batchnorm_is_no_trouble() -> None:
    commit_statistics(nn.Linear(2, 2), 1, None, 1)
    discard_statistics(nn.Linear(2, 2))


def test_a_single_value_per_channel_is_refused() -> None:
    """One image of one pixel has no variance."""
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        StepBatchNorm2d(6)(torch.ones(1, 6, 1, 1))


def test_the_state_dict_holds_running_statistics_only() -> None:
    layer = StepBatchNorm2d(6)
    layer(maps(0))
    assert set(layer.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_a_plain_dictionary_loads_strictly(tiny: Make) -> None:
    """As read from a safetensors file: without the metadata that a state dict carries."""
    model = tiny(seed=1)
    plain = {name: tensor.clone() for name, tensor in tiny(seed=2).state_dict().items()}
    model.load_state_dict(plain, strict=True)
    assert all(torch.equal(model.state_dict()[name], plain[name]) for name in plain)


def test_copies_collect_for_themselves() -> None:
    layer = StepBatchNorm2d(6)
    layer(maps(0))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.mean_sum, layer.mean_sum)
    discard_statistics(twin)
    assert layer.mean_sum.ne(0).all()


def test_channels_last_and_bf16_collect_fp32_statistics() -> None:
    layer, plain = StepBatchNorm2d(6), StepBatchNorm2d(6)
    rounded = maps(0, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(rounded.to(memory_format=torch.channels_last))
    plain(rounded.float())
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert layer.mean_sum.dtype == layer.var_sum.dtype == torch.float32
    torch.testing.assert_close(layer.mean_sum, plain.mean_sum, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.var_sum, plain.var_sum, rtol=1e-4, atol=1e-4)


def test_evaluation_neither_collects_nor_needs_a_batch() -> None:
    layer = StepBatchNorm2d(6).eval()
    layer(torch.ones(1, 6, 1, 1))
    assert layer.mean_sum.eq(0).all()


@pytest.fixture
def lone_group(tmp_path: Path) -> Iterator[None]:
    """Be the only rank of a process group."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("lone_group")
def test_ddp_wraps_the_model_and_takes_noise(tiny: Make, images: Images) -> None:
    bare, inside = tiny(), tiny()
    wrapped = DistributedDataParallel(inside, broadcast_buffers=False)
    noise = bare.draw_noise(4, 0.2, np.random.default_rng(0))
    for model in (bare, wrapped):
        for _ in range(2):
            model(images(4, 16), noise).square().mean().backward()
        commit_statistics(model, 2, None, 2)
    for (name, ours), theirs in zip(bare.named_parameters(), inside.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for name, buffer in bare.named_buffers():
        assert torch.equal(buffer, inside.get_buffer(name)), name
