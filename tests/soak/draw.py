"""Where trainings are interrupted and how: drawn from a seed, spread over all stages."""

import random
from collections.abc import Callable
from dataclasses import dataclass

KINDS = ("kill", "term", "usr2", "requeue", "preempt")
"""kill -9 and TERM to a rank, USR2 to the job, `scontrol requeue`, a job of a higher partition."""
APART_STEPS = 12
"""So many steps at least lie between two interruptions: the one before has taken effect."""
MARGIN_STEPS = 20
"""None comes so near to the end that the training could be done before it."""
ZERO1 = "{kind: deepspeed, zero_stage: 1}"


@dataclass(frozen=True)
class Setting:
    """A strategy and a number of ranks on two nodes."""

    strategy: str
    ranks: int


SETTINGS = {
    "ddp-2": Setting("ddp", 2),
    "zero1-2": Setting(ZERO1, 2),
    "ddp-4": Setting("ddp", 4),
    "zero1-4": Setting(ZERO1, 4),
}


@dataclass(frozen=True)
class Point:
    """An interruption once `step` steps are done."""

    kind: str
    step: int


def draw(
    rng: random.Random, rounds: int, steps: int, stage_of: Callable[[int], int]
) -> list[list[Point]]:
    """Return the points of `rounds` trainings of `steps` steps: every kind once in each.

    A training is cut into as many parts as there are kinds, with one point anywhere in each part.
    All is drawn again until every stage has one.
    """
    stages = set(map(stage_of, range(steps)))
    assert len(stages) <= rounds * len(KINDS), "more stages than points"
    while True:
        drawn = [_points(rng, steps) for _ in range(rounds)]
        if {stage_of(point.step) for points in drawn for point in points} == stages:
            return drawn


def _points(rng: random.Random, steps: int) -> list[Point]:
    part = (steps - MARGIN_STEPS) // len(KINDS)
    assert part > APART_STEPS, f"{steps} steps are too few for {len(KINDS)} points"
    kinds = rng.sample(KINDS, len(KINDS))
    return [
        Point(kind, index * part + rng.randrange(APART_STEPS, part))
        for index, kind in enumerate(kinds)
    ]
