"""The average: weights and BatchNorm statistics trail, integers are copied, the model is left."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.optim.ema import Ema

Make = Callable[[int], nn.Module]


def test_weights_and_statistics_move_towards_the_model(module: Make) -> None:
    first, second = module(1), module(2)
    ema = Ema(first)
    ema.update(second, 0.9)
    for name, tensor in ema.module.state_dict().items():
        if tensor.is_floating_point():
            expected = 0.9 * first.state_dict()[name] + 0.1 * second.state_dict()[name]
            torch.testing.assert_close(tensor, expected)
    names = set(ema.module.state_dict())
    assert {"0.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"} <= names


def test_integer_buffers_are_copied(module: Make) -> None:
    model = module(1)
    ema = Ema(model)
    model(torch.rand(4, 3, 3, 3))
    model(torch.rand(4, 3, 3, 3))
    ema.update(model, 0.9999)
    assert ema.module.state_dict()["1.num_batches_tracked"] == 2


def test_a_decay_of_zero_copies_and_one_ignores(module: Make) -> None:
    first, second = module(1), module(2)
    ema = Ema(first)
    ema.update(second, 1.0)
    assert torch.equal(ema.module.state_dict()["0.weight"], first.state_dict()["0.weight"])
    ema.update(second, 0.0)
    for name, tensor in ema.module.state_dict().items():
        torch.testing.assert_close(tensor, second.state_dict()[name], rtol=0, atol=1e-7)


def test_many_updates_are_the_recurrence(module: Make) -> None:
    """A constant model: after n updates decay^n of the first values is left."""
    first, second = module(1), module(2)
    ema = Ema(first)
    for _ in range(50):
        ema.update(second, 0.9)
    left = ema.module.state_dict()["3.weight"] - second.state_dict()["3.weight"]
    start = first.state_dict()["3.weight"] - second.state_dict()["3.weight"]
    torch.testing.assert_close(left, start * 0.9**50, rtol=1e-3, atol=1e-6)


def test_the_model_is_neither_changed_nor_shared(module: Make) -> None:
    model = module(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ema = Ema(model)
    ema.update(module(2), 0.5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_average_is_for_evaluation(module: Make) -> None:
    ema = Ema(module(1))
    assert not any(layer.training for layer in ema.module.modules())
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())


def test_another_model_is_refused(module: Make) -> None:
    with pytest.raises(KeyError):
        Ema(module(1)).update(nn.Linear(3, 3), 0.9)


def test_a_bf16_model_is_averaged_in_fp32(module: Make) -> None:
    """A difference of a ten-thousandth of a weight is under bf16's resolution of 2^-8."""
    first, second = module(1).bfloat16(), module(2).bfloat16()
    ema = Ema(first)
    for _ in range(100):
        ema.update(second, 0.9999)
    for name, tensor in ema.module.state_dict().items():
        if tensor.is_floating_point():
            start, goal = first.state_dict()[name].double(), second.state_dict()[name].double()
            assert tensor.dtype == torch.float32
            expected = goal + (start - goal) * 0.9999**100
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_weights_that_lie_elsewhere_are_taken_instead_of_the_models(module: Make) -> None:
    """Under a strategy that shards them the model holds a part; buffers are always its own."""
    first, second, third = module(1), module(2), module(3)
    whole = {name: weight.detach() for name, weight in third.named_parameters()}
    ema, expected = Ema(first), Ema(first)
    ema.update(second, 0.9, whole)
    for name, buffer in second.named_buffers():
        third.get_buffer(name).copy_(buffer)
    expected.update(third, 0.9)
    for name, tensor in ema.module.state_dict().items():
        assert torch.equal(tensor, expected.module.state_dict()[name]), name


def test_tensors_that_were_replaced_are_followed(module: Make) -> None:
    """Strategies and `Module.to` put other tensors in the place of those that were there first."""
    first, second = module(1), module(2)
    ema = Ema(first)
    ema.update(first, 0.0)
    first.get_submodule("1").running_mean = torch.full((4,), 7.0)
    weight = second.state_dict()["0.weight"].clone()
    first.get_submodule("0").weight = nn.Parameter(weight)
    ema.update(first, 0.0)
    state = ema.module.state_dict()
    torch.testing.assert_close(state["1.running_mean"], torch.full((4,), 7.0))
    torch.testing.assert_close(state["0.weight"], second.state_dict()["0.weight"])


def test_two_models_may_be_followed_in_turn(module: Make) -> None:
    first, second = module(1), module(2)
    ema = Ema(first)
    for model in (second, first, second):
        ema.update(model, 0.0)
        torch.testing.assert_close(
            ema.module.state_dict()["3.weight"], model.state_dict()["3.weight"]
        )
