"""The moving average, step by step, against a second writing of TensorFlow's with 64-bit floats.

Source: `tf.train.ExponentialMovingAverage` with `num_updates`: the shadow goes down by
(1 - decay) * (shadow - variable), decay is min(decay, (1 + t) / (10 + t)). utils.py and main.py of
google/automl, efficientnetv2, average the weights and BatchNorm's moving mean and variance.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models.batchnorm import StepBatchNorm2d
from pipeline.optim.ema import Ema
from pipeline.recipe import load_recipe

STEPS = 400


class Layer(nn.Module):
    """A convolution and its norm, whose tensors the test sets step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = StepBatchNorm2d(4)


@torch.no_grad()
def walk(model: nn.Module, rng: np.random.Generator) -> None:
    """Move every weight and statistic by a random step."""
    for tensor in model.state_dict().values():
        tensor += torch.from_numpy(rng.normal(size=tensor.shape) * 0.01).to(tensor.dtype)


@pytest.mark.parametrize("name", ["v2_s_1k", "v2_s_21k_ft1k"])
@pytest.mark.parametrize("first_step", [0, 80_000])
def test_every_step_is_tensorflows(repo: Path, name: str, first_step: int) -> None:
    """From the start, where the decay is small, and from where it has come close to its last."""
    recipe = load_recipe(repo / "configs" / f"{name}.yaml")
    plan, model, rng = recipe.plan(1_256_144), Layer(), np.random.default_rng(0)
    first_step = min(first_step, plan.total_steps - STEPS)
    ema = Ema(model)
    shadow = {n: t.double().numpy().copy() for n, t in model.state_dict().items()}
    assert {"conv.weight", "norm.weight", "norm.running_mean", "norm.running_var"} <= set(shadow)
    for step in range(first_step, first_step + STEPS):
        walk(model, rng)
        ema.update(model, plan.at(step).ema_decay)
        decay = min(recipe.ema.decay, (1.0 + step) / (10.0 + step))
        for key, value in model.state_dict().items():
            shadow[key] -= (1.0 - decay) * (shadow[key] - value.double().numpy())
    for key, value in ema.module.state_dict().items():
        np.testing.assert_allclose(value.double().numpy(), shadow[key], rtol=0, atol=2e-6)
        assert not np.allclose(value.numpy(), model.state_dict()[key].numpy(), atol=1e-3)
