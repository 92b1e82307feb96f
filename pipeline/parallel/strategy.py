"""The contract of a strategy: how a model is trained by many ranks.

The loop decides when (which micro-batch, which step); a strategy decides how gradients meet, how
the optimizer is laid out over ranks and how numbers are rounded. What a strategy gives out and
takes in is always whole: full fp32 weights and full optimizer slots, so that checkpoints know
nothing of world sizes or strategies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

Compute = Callable[[nn.Module], torch.Tensor]
"""Takes the model as the strategy wraps it and returns this micro-batch's share of the loss."""


@dataclass(frozen=True)
class Tensors:
    """Everything a strategy trains, whole and in fp32.

    `slots` is keyed `SLOT/PARAMETER`; `scaler` holds the loss scale and the steps since it last
    changed (fp16 only, else empty).
    """

    weights: dict[str, torch.Tensor]
    slots: dict[str, torch.Tensor]
    scaler: dict[str, float]


def scaler_state(scaler: torch.amp.GradScaler | None) -> dict[str, float]:
    """Return what a gradient scaler has to remember; empty where there is none."""
    if scaler is None or not scaler.is_enabled():
        return {}
    state = scaler.state_dict()
    return {"scale": float(state["scale"]), "growth": float(state["_growth_tracker"])}


def load_scaler(scaler: torch.amp.GradScaler | None, state: dict[str, float]) -> None:
    """Set a gradient scaler to `state`; nothing where either is absent."""
    if scaler is None or not scaler.is_enabled() or not state:
        return
    values = {"scale": state["scale"], "_growth_tracker": int(state["growth"])}
    scaler.load_state_dict({**scaler.state_dict(), **values})


class Strategy(Protocol):
    """What the engine needs of DDP, DeepSpeed and whatever comes next."""

    def micro_step(self, compute: Compute, last: bool) -> torch.Tensor:
        """Run forward and backward of one micro-batch; gradients meet after the `last` one.

        Returns the detached loss share. `compute` must divide by the number of micro-batches
        that this rank adds up in a step.
        """
        ...

    def step(self, lr: float) -> bool:
        """Apply the gradients with learning rate `lr` and clear them.

        Returns False where an overflow made all ranks skip the step (fp16 only).
        """
        ...

    def snapshot(self) -> Tensors:
        """Collect weights and slots (a collective; tensors may share memory with the model)."""
        ...

    def restore(self, tensors: Tensors) -> None:
        """Overwrite weights and slots; without slots they become the optimizer's first ones."""
        ...
