"""RMSProp: equal bits however the tensors are cut, state that can be saved, groups of their own."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from pipeline.optim.rmsprop import FIRST_SLOTS, RMSpropTF

SHAPES = [(7, 3, 3, 3), (7,), (11, 7), (1,), (129,)]


def draws(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def parameters(tensors: Sequence[torch.Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(tensor.clone()) for tensor in tensors]


def train(optimizer: RMSpropTF, params: Sequence[nn.Parameter], steps: range) -> None:
    """Give drawn gradients; `params` may be the tensors, or flat pieces of them all."""
    for step in steps:
        gradient = flat(draws(1000 + step))
        start = 0
        for parameter in params:
            size = parameter.numel()
            parameter.grad = gradient[start : start + size].reshape(parameter.shape).clone()
            start += size
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + step)
        optimizer.step()


@pytest.mark.parametrize("pieces", [1, 2, 3, 8])
def test_flat_pieces_give_the_bits_of_separate_tensors(pieces: int) -> None:
    """What a sharded optimizer needs: cuts may fall anywhere, even inside a tensor."""
    separate = parameters(draws(0))
    whole = flat(draws(0))
    cut = parameters(list(whole.tensor_split(pieces)))
    for params in (separate, cut):
        train(RMSpropTF(params, lr=0.1, weight_decay=1e-2), params, range(20))
    assert torch.equal(flat(separate), flat(cut))


def test_channels_last_gives_the_same_bits() -> None:
    plain = parameters(draws(0)[:1])
    last = parameters([draws(0)[0].to(memory_format=torch.channels_last)])
    for params in (plain, last):
        train(RMSpropTF(params, lr=0.1, weight_decay=1e-2), params, range(5))
    assert torch.equal(plain[0], last[0])


def test_slots_start_at_one_and_zero() -> None:
    params = parameters([torch.zeros(3)])
    optimizer = RMSpropTF(params, lr=0.0, decay=0.9)
    params[0].grad = torch.zeros(3)
    optimizer.step()
    state = optimizer.state[params[0]]
    assert FIRST_SLOTS == {"square_avg": 1.0, "momentum_buffer": 0.0}
    assert torch.equal(state["square_avg"], torch.full((3,), 0.9))
    assert torch.equal(state["momentum_buffer"], torch.zeros(3))
    assert set(state) == set(FIRST_SLOTS)


def test_the_rate_is_kept_in_the_momentum_buffer() -> None:
    """After the rate falls to zero the weights still roll on, as in TensorFlow."""
    params = parameters([torch.zeros(1)])
    optimizer = RMSpropTF(params, lr=1.0, decay=0.0, momentum=0.5, eps=1e-12)
    params[0].grad = torch.full((1,), 3.0)
    optimizer.step()
    assert params[0].item() == pytest.approx(-1.0)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert params[0].item() == pytest.approx(-1.5)


def test_a_saved_state_goes_on_with_the_same_bits() -> None:
    straight = parameters(draws(0))
    train(RMSpropTF(straight, lr=0.1), straight, range(10))
    first = parameters(draws(0))
    before = RMSpropTF(first, lr=0.1)
    train(before, first, range(5))
    second = parameters(first)
    after = RMSpropTF(second, lr=99.0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(after, second, range(5, 10))
    assert torch.equal(flat(second), flat(straight))
    assert after.param_groups[0]["eps"] == 1e-3


def test_each_group_decays_as_it_says() -> None:
    params = parameters([torch.ones(2), torch.ones(2)])
    groups = [
        {"params": params[:1], "weight_decay": 0.5},
        {"params": params[1:], "weight_decay": 0.0},
    ]
    optimizer = RMSpropTF(groups, lr=0.1)
    for parameter in params:
        parameter.grad = torch.zeros(2)
    optimizer.step()
    assert (params[0] < 1).all()
    assert torch.equal(params[1], torch.ones(2))


def test_gradients_are_left_as_they_were() -> None:
    params = parameters(draws(0))
    optimizer = RMSpropTF(params, lr=0.1, weight_decay=0.1)
    train(optimizer, params, range(1))
    assert torch.equal(torch.cat([p.grad.reshape(-1) for p in params if p.grad is not None]),
                       flat(draws(1000)))  # fmt: skip


def test_parameters_without_a_gradient_stay() -> None:
    params = parameters([torch.ones(2), torch.ones(2)])
    optimizer = RMSpropTF(params, lr=0.1)
    optimizer.step()
    params[0].grad = torch.ones(2)
    optimizer.step()
    assert (params[0] < 1).all()
    assert torch.equal(params[1], torch.ones(2))
    assert params[1] not in optimizer.state


def test_a_closure_is_refused() -> None:
    with pytest.raises(AssertionError):
        RMSpropTF(parameters([torch.ones(1)]), lr=0.1).step(lambda: 0.0)
