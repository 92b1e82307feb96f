"""How a training scales: the worlds that may run it, what stays idle, and where it stops paying.

The micro-batch is the unit of batch norm and mixing, so ranks share whole micro-batches: a world
must divide the count of every stage, and more cards than that stay idle. Where micro-batches share
batch norm's statistics, it must also divide such a group, or hold whole groups. `Point.cut` tells
what smaller micro-batches would give, which is another recipe for batch norm.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.plan.cost import Cluster
from pipeline.plan.estimate import Estimate, Job, estimate
from pipeline.plan.plan import SMALLEST_MIX, Plan
from pipeline.spec import Misuse

PAYS = 0.5
"""More cards pay while each that is added brings at least this share of what the first one did."""
MOST = 65_536


class Point(NamedTuple):
    """A number of cards: how many work, and the training as the recipe says it.

    `cut` is the same training with more, smaller micro-batches, so that all work; None where that
    changes nothing or cannot be.
    """

    capacity: int
    estimate: Estimate
    cut: Estimate | None

    @property
    def idle(self) -> int:
        return self.capacity - self.estimate.ranks


def parse_range(text: str) -> tuple[int, int]:
    """Return both ends of `A..B`.

    Raises:
        Misuse: it is no range of numbers of cards.
    """
    low, dots, high = text.partition("..")
    if not dots or not low.isdigit() or not high.isdigit():
        raise Misuse(f"--scale '{text}': expected FIRST..LAST, for example 1..512")
    first, last = int(low), int(high)
    if not 1 <= first <= last <= MOST:
        raise Misuse(f"--scale '{text}': expected 1 <= FIRST <= LAST <= {MOST}, for example 1..512")
    return first, last


def capacities(first: int, last: int) -> list[int]:
    """Return the numbers of cards to look at: `first` doubled until `last`, and `last`."""
    counts = [first * 2**k for k in range((last // first).bit_length())]
    return counts if counts[-1] == last else [*counts, last]


def worlds_sharing(micro_batches: Sequence[int], bn_group: int) -> list[int]:
    """Return the numbers of ranks that can share such numbers of micro-batches, smallest first.

    `bn_group` consecutive micro-batches have their batch norm in common.
    """
    shared = math.gcd(*micro_batches)
    return [n for n in range(1, shared + 1) if shared % n == 0 and makes_groups(n, bn_group)]


def makes_groups(world: int, bn_group: int) -> bool:
    """Return whether so many ranks can share groups of `bn_group` micro-batches."""
    return world % bn_group == 0 or bn_group % world == 0


def legal_worlds(plan: Plan, bn_group: int = 1) -> list[int]:
    """Return the numbers of ranks that can share every stage's micro-batches."""
    return worlds_sharing([stage.settings.micro_batches for stage in plan.stages], bn_group)


def world_for(plan: Plan, capacity: int, bn_group: int = 1) -> int:
    """Return the largest legal world of at most `capacity` ranks."""
    return max(world for world in legal_worlds(plan, bn_group) if world <= capacity)


def cut_micro_batches(plan: Plan, capacity: int, bn_group: int = 1) -> list[int] | None:
    """Return the fewest micro-batches for each stage, no fewer than now, that `capacity` can share.

    They divide the global batch, make whole groups and leave enough images to mix; None: there are
    none.
    """
    if not makes_groups(capacity, bn_group):
        return None
    unit = math.lcm(capacity, bn_group)
    counts = []
    for stage in plan.stages:
        mixes = stage.settings.mixup > 0 or stage.settings.cutmix > 0
        most = plan.global_batch // (SMALLEST_MIX if mixes else 1)
        start = math.ceil(stage.settings.micro_batches / unit) * unit
        fitting = (m for m in range(start, most + 1, unit) if plan.global_batch % m == 0)
        counts.append(next(fitting, 0))
    return counts if all(counts) else None


def scale(job: Job, cluster: Cluster, first: int, last: int) -> list[Point]:
    """Estimate the training on `first` to `last` cards like those of `cluster`."""
    return [_point(job, cluster, capacity) for capacity in capacities(first, last)]


def _point(job: Job, cluster: Cluster, capacity: int) -> Point:
    nodes = math.ceil(capacity / cluster.gpus_per_node)
    here = cluster._replace(nodes=nodes, gpus_per_node=min(capacity, cluster.gpus_per_node))
    world = world_for(job.plan, capacity, job.bn_group)
    counts = None if world == capacity else cut_micro_batches(job.plan, capacity, job.bn_group)
    cut = estimate(job, here, capacity, counts) if counts else None
    return Point(capacity, estimate(job, here, world), cut)


def pays_until(times_s: Sequence[tuple[int, float]], alone_s: float) -> int:
    """Return the last number of cards that pays, of (cards, seconds of the whole training).

    The first row that brings too little ends it, though a later one might bring more.
    """
    best = times_s[0][0]
    for (few, slow), (many, fast) in zip(times_s, times_s[1:], strict=False):
        gain = alone_s / fast - alone_s / slow
        if gain < PAYS * (many - few):
            break
        best = many
    return best
