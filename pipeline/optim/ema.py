"""The moving average of a model's weights and BatchNorm statistics.

It is what gets evaluated, registered and finetuned. The decay of each update is the plan's, so
the average keeps no counter of its own. It is kept in fp32 whatever the model's numbers are: a
ten-thousandth of a difference would vanish in bf16.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Place = tuple[dict[str, Tensor | None], str]
"""The dictionary of a module that holds a tensor, and its key: stays true when it is replaced."""


class Ema:
    """A copy of the model, in eval mode and without gradients, that trails behind it."""

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False).float()
        state = self.module.state_dict()
        self._floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
        self._others = [name for name in state if name not in set(self._floats)]
        self._average = _places(self.module)
        self._followed: tuple[nn.Module, dict[str, Place]] | None = None

    @torch.no_grad()
    def update(
        self, model: nn.Module, decay: float, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Move the average by 1 - `decay` towards `model`; integer buffers are copied.

        Args:
            weights: whole weights by name, taken instead of the model's own where a strategy
                leaves only a part of them in the model.

        Raises:
            KeyError: `model` lacks a tensor of the averaged one.
        """
        if self._followed is None or self._followed[0] is not model:
            self._followed = (model, _places(model))
        places, whole = self._followed[1], weights or {}
        average = [_read(self._average[name]) for name in self._floats]
        current = [whole[name] if name in whole else _read(places[name]) for name in self._floats]
        current = [
            new if new.dtype == old.dtype else new.to(old.dtype)
            for old, new in zip(average, current, strict=True)
        ]
        torch._foreach_lerp_(average, current, 1 - decay)
        for name in self._others:
            _read(self._average[name]).copy_(_read(places[name]))


def _places(model: nn.Module) -> dict[str, Place]:
    """Return where each parameter and buffer of `model` is held; walked through once."""
    places: dict[str, Place] = {}
    for prefix, module in model.named_modules():
        holders: tuple[Any, ...] = (module._parameters, module._buffers)
        for holder in holders:
            for key in holder:
                places[f"{prefix}.{key}" if prefix else key] = (holder, key)
    return places


def _read(place: Place) -> Tensor:
    holder, key = place
    tensor = holder[key]
    assert tensor is not None
    return tensor
