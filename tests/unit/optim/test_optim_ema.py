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
