"""The contract of a strategy: how a model is trained by many ranks.

The loop decides when (which micro-batch, which step); a strategy decides how gradients meet, how
the optimizer is laid out over ranks and how numbers are rounded. What a strategy gives out and
takes in is always whole: full fp32 weights and full optimizer slots, so that checkpoints know
nothing of world sizes or strategies.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from pipeline.parallel.settings import Precision

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
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


class Strategy(Protocol):
    """What the engine needs of DDP, DeepSpeed, FSDP and whatever comes next."""

    def forward(self, compute: Compute) -> torch.Tensor:
        """Run a forward pass as `micro_step` does and return what `compute` does, with its graph.

        Its gradients may be asked for (`torch.autograd.grad`), not accumulated.
        """
        ...

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

    def discard(self) -> None:
        """Drop the gradients since the last step, on all ranks; the loss scale stays as it is."""
        ...

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the whole fp32 weights on every rank, to be read before the next micro-step.

        The live tensors where every rank has them; gathered (a collective) where they are sharded.
        """
        ...

    def snapshot(self) -> Tensors:
        """Collect weights and slots (a collective; tensors may share memory with the model)."""
        ...

    def restore(self, tensors: Tensors) -> None:
        """Overwrite weights and slots; without slots they become the optimizer's first ones."""
        ...


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give the learning rate of a step to all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which a model with fp32 weights computes in `precision`."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
