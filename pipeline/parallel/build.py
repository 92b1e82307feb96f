"""From a strategy's settings to the strategy: the one place that lists them."""

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
    from pipeline.parallel.deepspeed import Deepspeed

    return Deepspeed(spec, world, model, optimizer, compute, first_slots)
