"""RMSProp as TensorFlow 1 computes it, which EfficientNet's published settings assume.

It differs from PyTorch's in three places: epsilon is inside the square root, the average of
squares starts at one, and the learning rate is multiplied into the momentum buffer:

    square_avg      = decay * square_avg + (1 - decay) * gradient^2
    momentum_buffer = momentum * momentum_buffer + lr * gradient / sqrt(square_avg + eps)
    weight          = weight - momentum_buffer

Weight decay is the gradient of wd * sum(w^2) / 2, added before all of this (utils.py there).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pipeline.optim.blocks import Lists, in_blocks

FIRST_SLOTS = {"square_avg": 1.0, "momentum_buffer": 0.0}
"""The optimizer's state for each parameter, and the value that it starts with."""


class RMSpropTF(torch.optim.Optimizer):
    """TF-semantics RMSProp; every operation is elementwise, so flat partitions give equal bits.

    For the same reason it may go through the weights block by block, which on a CPU keeps a
    block's ten operations in its cache. Slots lie in memory like their parameter: where layouts
    differ, a GPU has no kernel for many tensors at once.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "decay": decay, "momentum": momentum, "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply the gradients; `closure` is not supported, as the engine owns the loop."""
        assert closure is None
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            grads = [parameter.grad for parameter in params]
            for some in in_blocks([params, grads, *self._slots(params)]):
                _update(some, group)

    def _slots(self, params: list[Tensor]) -> list[list[Tensor]]:
        """Return each slot of `params`, made with its first value where it is new."""
        slots: list[list[Tensor]] = [[] for _ in FIRST_SLOTS]
        for parameter in params:
            state = self.state[parameter]
            for members, (slot, first) in zip(slots, FIRST_SLOTS.items(), strict=True):
                if slot not in state:
                    state[slot] = torch.full_like(parameter, first)
                elif state[slot].stride() != parameter.stride():
                    state[slot] = torch.empty_like(parameter).copy_(state[slot])
                members.append(state[slot])
        return slots


def _update(tensors: Lists, group: dict[str, Any]) -> None:
    """Apply the rule to lists of weights, gradients and both slots; gradients stay as they are."""
    params, grads, squares, buffers = tensors
    if group["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
    torch._foreach_mul_(squares, group["decay"])
    torch._foreach_addcmul_(squares, grads, grads, value=1 - group["decay"])
    roots = torch._foreach_add(squares, group["eps"])
    torch._foreach_sqrt_(roots)
    torch._foreach_mul_(buffers, group["momentum"])
    torch._foreach_addcdiv_(buffers, grads, roots, value=group["lr"])
    torch._foreach_sub_(params, buffers)
