"""Groups of consecutive ranks, for BatchNorm statistics that several micro-batches share."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pipeline.parallel.world import World


@dataclass(frozen=True)
class Neighbours:
    """The ranks that share with this one, and its place among them."""

    index: int
    size: int
    group: dist.ProcessGroup

    def sum(self, tensor: torch.Tensor) -> None:
        """Add `tensor` up over the group, in place."""
        dist.all_reduce(tensor, group=self.group)


def neighbours(world: World, size: int, timeout_s: int) -> Neighbours | None:
    """Join the group of `size` consecutive ranks that this one belongs to (a collective).

    None where there is nothing to share. A group larger than the world is the whole world.
    `size` must divide the number of ranks or be a multiple of it (`ModelSpec.together`).
    """
    size = min(size, world.size)
    if size == 1:
        return None
    assert world.size % size == 0, f"{world.size} ranks do not make groups of {size}"
    mine: dist.ProcessGroup | None = None
    for first in range(0, world.size, size):  # every rank makes every group, in this order
        ranks = list(range(first, first + size))
        group = dist.new_group(ranks, timeout=timedelta(seconds=timeout_s))
        if isinstance(group, dist.ProcessGroup):  # in the others this rank is no member
            mine = group
    assert mine is not None
    return Neighbours(world.rank % size, size, mine)
