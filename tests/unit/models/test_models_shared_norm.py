"""Statistics shared by a group: the arithmetic, forward and backward, on one rank."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.models.batchnorm import (
    StepBatchNorm2d,
    commit_statistics,
    each_alone,
    share_statistics,
)
from pipeline.models.shared_norm import shared_norm


@dataclass
class Lone:
    """A group of one: nothing is sent."""

    index: int = 0
    size: int = 1
    asked: int = 0

    def sum(self, tensor: torch.Tensor) -> None:
        self.asked += 1


@dataclass
class Twin:
    """A group of two whose other rank holds the same maps, so its rows equal ours."""

    index: int = 1
    size: int = 2

    def sum(self, tensor: torch.Tensor) -> None:
        tensor[0] = tensor[1]


def draw(*shape: int) -> torch.Tensor:
    rng = np.random.default_rng(5)
    return torch.from_numpy(rng.standard_normal(shape) * 2 + 1)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (6, 3), (2, 3, 7)])
def test_a_group_of_one_computes_what_torch_does(shape: tuple[int, ...]) -> None:
    maps, twin = draw(*shape).requires_grad_(), draw(*shape).requires_grad_()
    weight, bias = draw(3).requires_grad_(), draw(3).requires_grad_()
    mean, var = torch.zeros(3).double(), torch.ones(3).double()
    output, own_mean, own_var = shared_norm(Lone())(maps, weight, bias, 1e-3)
    right = F.batch_norm(twin, mean, var, weight, bias, True, 1.0, 1e-3)
    torch.testing.assert_close(output, right)
    torch.testing.assert_close((own_mean, own_var), (mean, var))
    pull = draw(*shape).cos()
    ours = torch.autograd.grad((output * pull).sum(), [maps, weight, bias])
    theirs = torch.autograd.grad((right * pull).sum(), [twin, weight, bias])
    torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_the_function() -> None:
    inputs = [draw(3, 2, 2, 2), draw(2), draw(2).cos()]
    for tensor in inputs:
        tensor.requires_grad_()
    normalise = shared_norm(Lone())
    assert torch.autograd.gradcheck(lambda x, w, b: normalise(x, w, b, 1e-2)[0], inputs)


def test_the_variance_of_a_group_counts_all_its_values() -> None:
    maps = draw(2, 3, 4, 4)
    whole = torch.cat([maps, maps])
    _, mean, var = shared_norm(Twin())(maps, torch.ones(3), torch.zeros(3), 1e-3)
    torch.testing.assert_close(mean, whole.mean((0, 2, 3)))
    torch.testing.assert_close(var, whole.var((0, 2, 3)))


def test_one_value_per_channel_will_do_where_the_group_has_more() -> None:
    normalise = shared_norm(Twin())
    assert normalise(draw(1, 3, 1, 1), torch.ones(3), torch.zeros(3), 1e-3)[0].abs().max() < 1e-6
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        shared_norm(Lone())(draw(1, 3, 1, 1), torch.ones(3), torch.zeros(3), 1e-3)


def test_bf16_maps_keep_their_type_and_layout_and_fp32_statistics() -> None:
    layer = StepBatchNorm2d(3)
    share_statistics(layer, Lone())
    maps = draw(4, 3, 5, 5).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    output = layer(maps)
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    output.float().square().mean().backward()
    assert maps.grad is not None and maps.grad.dtype == torch.bfloat16
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.mean_sum, maps.detach().float().mean((0, 2, 3)))


def test_what_is_collected_is_committed_as_ever() -> None:
    shared, plain = StepBatchNorm2d(3), StepBatchNorm2d(3)
    share_statistics(shared, Lone())
    for layer in (shared, plain):
        layer(draw(4, 3, 5, 5).float())
        commit_statistics(layer, 1, None, 1)
    torch.testing.assert_close(shared.running_mean, plain.running_mean)
    torch.testing.assert_close(shared.running_var, plain.running_var)


def test_evaluation_and_time_alone_ask_nobody() -> None:
    group = Lone()
    layer = StepBatchNorm2d(3)
    share_statistics(layer, group)
    layer.eval()(draw(2, 3, 4, 4).float())
    layer.train()
    with each_alone(layer):
        layer(draw(2, 3, 4, 4).float())
    assert group.asked == 0
    layer(draw(2, 3, 4, 4).float())
    assert group.asked == 1
    share_statistics(layer, None)
    layer(draw(2, 3, 4, 4).float())
    assert group.asked == 1


def test_a_compiled_model_still_asks_the_others() -> None:
    group = Lone()
    layer, eager = StepBatchNorm2d(3), StepBatchNorm2d(3)
    for model in (layer, eager):
        share_statistics(model, group)
    compiled = torch.compile(layer, backend="eager")
    torch.testing.assert_close(compiled(draw(2, 3, 4, 4)), eager(draw(2, 3, 4, 4)))
    assert group.asked == 2
