"""The loss scale follows torch's own scaler; gradients are clipped as torch clips them."""

import pytest
import torch
from torch import nn

from pipeline.parallel.scaling import (
    GROW_EVERY,
    LossScale,
    clip_by_global_norm,
    load_scaler,
    scaler_state,
)


def follow_torch(overflows: list[bool]) -> list[dict[str, float]]:
    """What torch.amp.GradScaler does when these steps overflow."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    states = []
    for overflow in overflows:
        scaler.scale(weight.sum() * (float("inf") if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        states.append(scaler_state(scaler))
    return states


def test_the_scale_follows_the_rule_of_torch() -> None:
    overflows = [True, False, True, True] + [False] * (GROW_EVERY + 1) + [True]
    scale, states = LossScale(8.0), []
    for overflow in overflows:
        scale.update(overflow)
        states.append(scale.state())
    assert states == follow_torch(overflows)
    assert max(state["scale"] for state in states[3:]) == 2.0 and states[-1]["scale"] == 1.0


def test_a_scale_that_was_saved_goes_on() -> None:
    scale, scaler = LossScale(8.0), torch.amp.GradScaler("cpu")
    saved = {"scale": 4.0, "growth": 1999.0}
    scale.load(saved)
    load_scaler(scaler, saved)
    assert scale.state() == scaler_state(scaler) == saved
    scale.update(False)
    assert scale.state() == {"scale": 8.0, "growth": 0.0}


def test_a_state_without_a_scale_changes_nothing() -> None:
    scale, scaler = LossScale(8.0), torch.amp.GradScaler("cpu", init_scale=8.0)
    scale.load({})
    load_scaler(scaler, {})
    assert scale.state() == scaler_state(scaler) == {"scale": 8.0, "growth": 0.0}
    assert scaler_state(torch.amp.GradScaler("cpu", enabled=False)) == {}


def gradients(scale: float = 1.0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng) * scale for shape in ((3, 5), (7,), (0,), (2, 1, 3))]


@pytest.mark.parametrize("limit", [0.1, 1.0])
def test_gradients_keep_their_direction_and_get_the_limit_as_norm(limit: float) -> None:
    grads, whole = gradients(10.0), gradients(10.0)
    clip_by_global_norm(grads, limit)
    norm = sum(float(grad.double().square().sum()) for grad in whole) ** 0.5
    for grad, before in zip(grads, whole, strict=True):
        expected = before.double() * limit / norm
        torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-8)


def test_torch_clips_the_same() -> None:
    parameters = [nn.Parameter(torch.zeros_like(grad)) for grad in gradients()]
    for parameter, grad in zip(parameters, gradients(10.0), strict=True):
        parameter.grad = grad
    nn.utils.clip_grad_norm_(parameters, 0.7)
    grads = gradients(10.0)
    clip_by_global_norm(grads, 0.7)
    for parameter, grad in zip(parameters, grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-6, atol=1e-7)


def test_small_gradients_keep_their_bits() -> None:
    grads = gradients(1e-3)
    clip_by_global_norm(grads, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(grads, gradients(1e-3), strict=True))


def test_parts_of_gradients_are_clipped_by_the_norm_of_the_whole() -> None:
    whole, mine = gradients(10.0), gradients(10.0)[:2]
    others = sum(float(grad.square().sum()) for grad in gradients(10.0)[2:])
    clip_by_global_norm(whole, 0.7)

    def add_up(square: torch.Tensor) -> None:
        square += others

    clip_by_global_norm(mine, 0.7, add_up)
    for grad, expected in zip(mine, whole, strict=False):
        torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-7)
