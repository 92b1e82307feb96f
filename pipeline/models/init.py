"""First weights as the official code draws them, from a numpy generator and nothing global."""

import math

import numpy as np
import torch
from torch import nn


@torch.no_grad()
def initialise(model: nn.Module, rng: np.random.Generator | None) -> None:
    """Overwrite all parameters and buffers of `model`, layer by layer in module order.

    Convolutions: normal, variance 2 / fan-out (depthwise: kernel area). Classifier: uniform in
    +-1/sqrt(classes). Biases 0, BatchNorm the identity. Source: google/automl
    `effnetv2_model.py`. Without `rng` the weights are zeros that wait to be loaded over.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
            _normal(layer.weight, math.sqrt(2 / fan_out), rng)
        elif isinstance(layer, nn.Linear):
            _uniform(layer.weight, 1 / math.sqrt(layer.out_features), rng)
        elif isinstance(layer, nn.BatchNorm2d):
            for buffer in layer.buffers():
                buffer.zero_()
            layer.reset_parameters()
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            layer.bias.zero_()


def _normal(weight: torch.Tensor, deviation: float, rng: np.random.Generator | None) -> None:
    if rng is None:
        weight.zero_()
    else:
        draws = rng.standard_normal(tuple(weight.shape), dtype=np.float32)
        weight.copy_(torch.from_numpy(draws)).mul_(deviation)


def _uniform(weight: torch.Tensor, limit: float, rng: np.random.Generator | None) -> None:
    if rng is None:
        weight.zero_()
    else:
        draws = rng.random(tuple(weight.shape), dtype=np.float32)
        weight.copy_(torch.from_numpy(draws)).mul_(2 * limit).sub_(limit)
