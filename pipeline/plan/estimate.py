"""A whole training on a cluster: each stage's step, and their sum.

A step lasts as long as the slower of two: computing plus what communication cannot hide, or
loading. What is not in it: waiting for the slowest rank, restarts, the start of an attempt.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.plan.cost import (
    Bits,
    Cluster,
    Memory,
    Pace,
    Sharding,
    Work,
    compute_s,
    exchange_s,
    exposed_s,
    memory_of,
    pace_of,
    traffic_bytes,
)
from pipeline.plan.plan import Plan, PlannedStage
from pipeline.plan.rates import Rate, loader_core_images_s


class Job(NamedTuple):
    """What is trained, as far as its cost goes.

    `cores` read images for each rank; `kept` is the number of checkpoints that stay on disk;
    `bn_group` micro-batches have their batch norm in common.
    """

    plan: Plan
    work_at: Callable[[int], Work]
    bits: Bits
    sharding: Sharding
    cores: int
    bytes_an_image: float
    bytes_basis: str
    eval_images: int
    eval_px: int
    evaluations: int
    kept: int
    own: Sequence[Rate] = ()
    bn_group: int = 1


class StageEstimate(NamedTuple):
    """One stage on so many ranks; times are of one step."""

    planned: PlannedStage
    micro_batches: int
    micro_batch: int
    accumulate: int
    pace: Pace
    compute_s: float
    exchange_s: float
    exposed_s: float
    load_s: float
    memory: Memory
    cores: float

    @property
    def step_s(self) -> float:
        return max(self.compute_s + self.exposed_s, self.load_s)

    @property
    def steps(self) -> int:
        return self.planned.end - self.planned.start

    @property
    def waits(self) -> float:
        """The share of a step that passes waiting for data."""
        return 1 - (self.compute_s + self.exposed_s) / self.step_s


class Estimate(NamedTuple):
    """A training on `ranks` of the cluster's cards; the others are idle but held."""

    cluster: Cluster
    ranks: int
    stages: tuple[StageEstimate, ...]
    evaluation_s: float

    @property
    def total_s(self) -> float:
        return sum(stage.steps * stage.step_s for stage in self.stages) + self.evaluation_s

    @property
    def gpu_hours(self) -> float:
        """Of all cards that the job holds, working or not."""
        return self.total_s / 3600 * self.cluster.capacity


def estimate(
    job: Job, cluster: Cluster, ranks: int, micro_batches: Sequence[int] | None = None
) -> Estimate:
    """Estimate a training on `ranks`, which divide the micro-batches of every stage.

    `micro_batches` replaces the recipe's, stage by stage.
    """
    counts = micro_batches or [stage.settings.micro_batches for stage in job.plan.stages]
    stages = tuple(
        _stage(job, cluster, ranks, planned, count)
        for planned, count in zip(job.plan.stages, counts, strict=True)
    )
    work = job.work_at(job.eval_px)
    pace = pace_of(cluster.gpu, work, job.bits, job.own)
    scoring = job.eval_images / (3 * pace.images_s * ranks)  # a forward pass is a third of a step
    return Estimate(cluster, ranks, stages, job.evaluations * scoring)


def _stage(
    job: Job, cluster: Cluster, ranks: int, planned: PlannedStage, micro_batches: int
) -> StageEstimate:
    assert micro_batches % ranks == 0, f"{ranks} ranks cannot share {micro_batches} micro-batches"
    work = job.work_at(planned.settings.px)
    size, accumulate = job.plan.global_batch // micro_batches, micro_batches // ranks
    pace = pace_of(cluster.gpu, work, job.bits, job.own)
    computing = compute_s(cluster.card, work, pace.images_s, size, accumulate)
    traffic = traffic_bytes(work, job.sharding)
    exchange = exchange_s(cluster, ranks, traffic)
    exposed = exposed_s(exchange, traffic, computing / accumulate)
    core = loader_core_images_s(planned.settings.px)
    images = size * accumulate
    return StageEstimate(
        planned=planned,
        micro_batches=micro_batches,
        micro_batch=size,
        accumulate=accumulate,
        pace=pace,
        compute_s=computing,
        exchange_s=exchange,
        exposed_s=exposed,
        load_s=images / (max(1, job.cores) * core),
        memory=memory_of(work, size, job.bits, job.sharding, ranks),
        cores=images / ((computing + exposed) * core),
    )


def fitting_micro_batches(job: Job, cluster: Cluster, planned: PlannedStage) -> int | None:
    """Return the fewest micro-batches, a multiple of the recipe's, that fit into the card.

    None: not even single images do.
    """
    work = job.work_at(planned.settings.px)
    count = planned.settings.micro_batches
    ranks = cluster.capacity
    while count <= job.plan.global_batch:
        size = job.plan.global_batch // count
        held = memory_of(work, size, job.bits, job.sharding, ranks).total
        if job.plan.global_batch % count == 0 and held <= cluster.card.memory_bytes:
            return count
        count *= 2
    return None
