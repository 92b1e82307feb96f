"""From a strategy's settings to the strategy: the one place that lists them."""

from torch import nn
from torch.optim import Optimizer

from pipeline.parallel.settings import DdpSpec, Precision, StrategySpec
from pipeline.parallel.strategy import Strategy
from pipeline.parallel.world import World


def build_strategy(
    spec: StrategySpec,
    world: World,
    model: nn.Module,
    optimizer: Optimizer,
    precision: Precision,
    first_slots: dict[str, float],
) -> Strategy:
    """Wrap `model` (already on its device); `first_slots` says how optimizer slots begin."""
    if isinstance(spec, DdpSpec):
        from pipeline.parallel.ddp import Ddp

        return Ddp(world, model, optimizer, precision, first_slots)
    from pipeline.parallel.deepspeed import Deepspeed

    return Deepspeed(spec, world, model, optimizer, precision, first_slots)
