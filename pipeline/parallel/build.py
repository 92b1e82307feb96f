"""From a strategy's settings to the strategy: the one place that lists them."""

import sys
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from pipeline.parallel.settings import (
    ComputeSpec,
    DdpSpec,
    FsdpSpec,
    StrategySpec,
    check_fits,
)
from pipeline.parallel.strategy import Strategy
from pipeline.parallel.world import World

if TYPE_CHECKING:
    from pipeline.parallel.deepspeed import Deepspeed


def build_strategy(
    spec: StrategySpec,
    world: World,
    model: nn.Module,
    optimizer: Optimizer,
    compute: ComputeSpec,
    first_slots: dict[str, float],
) -> Strategy:
    """Wrap `model` (already on its device); `first_slots` says how optimizer slots begin.

    Raises:
        Misuse: the settings cannot be had together.
    """
    check_fits(spec, compute)
    if isinstance(spec, DdpSpec):
        from pipeline.parallel.ddp import Ddp

        return Ddp(spec, world, model, optimizer, compute, first_slots)
    if isinstance(spec, FsdpSpec):
        from pipeline.parallel.fsdp import Fsdp

        return Fsdp(spec, world, model, optimizer, compute, first_slots)
    return import_deepspeed()(spec, world, model, optimizer, compute, first_slots)


def import_deepspeed() -> "type[Deepspeed]":
    """Import DeepSpeed without mlflow, which its autotuner alone would use.

    That would cost every rank a second, 110 MiB and a thread.
    """
    modules = cast("dict[str, Any]", sys.modules)
    hidden = modules.setdefault("mlflow", None) is None
    try:
        from pipeline.parallel.deepspeed import Deepspeed
    finally:
        if hidden:
            del modules["mlflow"]
    return Deepspeed
