"""Loss scaling for fp16, and the clipping of gradients: what all strategies do alike.

An fp16 gradient that overflows must make every rank skip the step, and the next one must use half
the scale. Where torch's own scaler sees all gradients it does that; where they are sharded the
ranks have to agree first.
"""

from collections.abc import Callable

import torch
from torch import Tensor

GROW_EVERY = 2000
"""Steps without an overflow after which the scale doubles; GradScaler's own default."""
TINY = 1e-6


class LossScale:
    """The scale as plain numbers, for strategies that find overflows by themselves.

    Same rule as torch.amp.GradScaler: half after an overflow, double after `GROW_EVERY` steps.
    """

    def __init__(self, first: float) -> None:
        self.scale = first
        self.growth = 0

    def update(self, overflow: bool) -> None:
        """Follow one step that overflowed, or did not."""
        if overflow:
            self.scale, self.growth = self.scale * 0.5, 0
        elif self.growth + 1 == GROW_EVERY:
            self.scale, self.growth = self.scale * 2.0, 0
        else:
            self.growth += 1

    def state(self) -> dict[str, float]:
        """Return what has to be remembered."""
        return {"scale": self.scale, "growth": float(self.growth)}

    def load(self, state: dict[str, float]) -> None:
        """Set the scale to `state`; nothing where that is empty (saved without fp16)."""
        if state:
            self.scale, self.growth = state["scale"], int(state["growth"])


def scaler_state(scaler: torch.amp.GradScaler) -> dict[str, float]:
    """Return what a gradient scaler has to remember; empty where it is off."""
    if not scaler.is_enabled():
        return {}
    state = scaler.state_dict()
    return {"scale": float(state["scale"]), "growth": float(state["_growth_tracker"])}


def load_scaler(scaler: torch.amp.GradScaler, state: dict[str, float]) -> None:
    """Set a gradient scaler to `state`; nothing where it is off or `state` is empty."""
    if scaler.is_enabled() and state:
        values = {"scale": state["scale"], "_growth_tracker": int(state["growth"])}
        scaler.load_state_dict({**scaler.state_dict(), **values})


def clip_by_global_norm(
    grads: list[Tensor], limit: float, add_up: Callable[[Tensor], None] | None = None
) -> None:
    """Scale `grads` in place so that their common L2 norm is at most `limit`.

    `add_up` sums a tensor over the ranks in place; it is needed where each rank holds a part of
    the gradients. Nothing waits for the device.
    """
    square = torch.stack(torch._foreach_norm(grads)).float().square().sum()
    if add_up is not None:
        add_up(square)
    factor = (limit / (square.sqrt() + TINY)).clamp(max=1.0)
    torch._foreach_mul_(grads, factor)
