"""RMSProp against a second writing of TensorFlow's rule, in numpy with 64-bit floats.

Source: the documentation of `tf.compat.v1.train.RMSPropOptimizer` and of its kernel ApplyRMSProp:
the mean square starts at one, epsilon is added to it before the root, the rate is inside the
momentum. The loss adds weight_decay * sum(w^2) / 2, as google/automl's utils.py does.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.optim.rmsprop import RMSpropTF

Array = NDArray[np.float64]


def tensorflow_steps(
    weight: Array,
    gradients: Array,
    rates: Array,
    weight_decay: float,
    rho: float = 0.9,
    momentum: float = 0.9,
    epsilon: float = 1e-3,
) -> list[Array]:
    """Return the weights after each step."""
    mean_square, mom = np.ones_like(weight), np.zeros_like(weight)
    history = []
    for gradient, rate in zip(gradients, rates, strict=True):
        total = gradient + weight_decay * weight
        mean_square = mean_square + (total**2 - mean_square) * (1.0 - rho)
        mom = momentum * mom + rate * total / np.sqrt(mean_square + epsilon)
        weight = weight - mom
        history.append(weight)
    return history


def our_steps(
    weight: Array, gradients: Array, rates: Array, weight_decay: float, dtype: torch.dtype
) -> list[Array]:
    """Return the weights after each step of the product's optimizer."""
    parameter = nn.Parameter(torch.tensor(weight, dtype=dtype))
    optimizer = RMSpropTF([parameter], lr=0.0, weight_decay=weight_decay)
    history = []
    for gradient, rate in zip(gradients, rates, strict=True):
        parameter.grad = torch.tensor(gradient, dtype=dtype)
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
        history.append(parameter.detach().double().numpy().copy())
    return history


def drawn(scale: float) -> tuple[Array, Array, Array]:
    """Weights, 300 gradients of the given size, and rates with a warmup and a fall."""
    rng = np.random.default_rng(5)
    rates = np.minimum(np.arange(300) / 50, 1.0) * 0.256 * 0.97 ** (np.arange(300) // 10)
    return rng.normal(size=64), rng.normal(size=(300, 64)) * scale, rates


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-5, 1e-2])
def test_every_step_is_tensorflows(scale: float, weight_decay: float) -> None:
    weight, gradients, rates = drawn(scale)
    expected = tensorflow_steps(weight, gradients, rates, weight_decay)
    exact = our_steps(weight, gradients, rates, weight_decay, torch.float64)
    np.testing.assert_allclose(exact, expected, rtol=1e-9, atol=1e-11)
    single = our_steps(weight, gradients, rates, weight_decay, torch.float32)
    size = np.abs(expected).max()
    np.testing.assert_allclose(single, expected, rtol=0, atol=2e-5 * size)


def test_it_is_not_pytorchs_rmsprop() -> None:
    """The three differences matter: the first steps are far from `torch.optim.RMSprop`'s."""
    weight, gradients, rates = drawn(1e-2)
    parameter = nn.Parameter(torch.tensor(weight))
    theirs = torch.optim.RMSprop([parameter], lr=0.0, alpha=0.9, eps=1e-3, momentum=0.9)
    for gradient, rate in zip(gradients[:20], rates[:20], strict=True):
        parameter.grad = torch.tensor(gradient)
        theirs.param_groups[0]["lr"] = float(rate)
        theirs.step()
    ours = our_steps(weight, gradients[:20], rates[:20], 0.0, torch.float64)[-1]
    moved = np.abs(ours - weight).mean()
    assert np.abs(parameter.detach().numpy() - weight).mean() > 10 * moved


def test_three_steps_by_hand() -> None:
    """One weight of 1, gradients 1, 2 and 0, rate 0.1: printed digits worked out on paper."""
    gradients = np.array([[1.0], [2.0], [0.0]])
    history = our_steps(np.ones(1), gradients, np.full(3, 0.1), 0.0, torch.float64)
    # squares 1, 1.3, 1.17; steps 0.1/sqrt(1.001), 0.2/sqrt(1.301), 0
    first = 0.1 / np.sqrt(1.001)
    second = 0.9 * first + 0.2 / np.sqrt(1.301)
    third = 0.9 * second
    expected = [1 - first, 1 - first - second, 1 - first - second - third]
    np.testing.assert_allclose(np.ravel(history), expected, rtol=1e-14)
    np.testing.assert_allclose(np.ravel(history), [0.90005, 0.63475, 0.39598], atol=2e-5)
