"""The moving average of a model's weights and BatchNorm statistics.

It is what gets evaluated, registered and finetuned. The decay of each update is the plan's, so
the average keeps no counter of its own.
"""

import copy

import torch
from torch import nn


class Ema:
    """A copy of the model, in eval mode and without gradients, that trails behind it."""

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Move the average by 1 - `decay` towards `model`; integer buffers are copied."""
        average, current = self.module.state_dict(), model.state_dict()
        floats = [name for name, tensor in average.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [average[name] for name in floats], [current[name] for name in floats], 1 - decay
        )
        for name in average.keys() - set(floats):
            average[name].copy_(current[name])
