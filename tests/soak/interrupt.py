"""Interrupts one training at chosen steps, and tells what each interruption cost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.soak.cluster import ENDED
from tests.soak.draw import Point
from tests.soak.legs import Leg, Legs
from tests.soak.throws import NoTarget, Target, throw

LOOK_S, ASK_S = 0.03, 0.5
"""The spool is read so often, and SLURM is asked so often: a step takes some 50 ms."""


@dataclass(frozen=True)
class Hit:
    """A point whose fault was thrown at `time_s` (since 1970), during an attempt."""

    point: Point
    attempt: int
    time_s: float


@dataclass(frozen=True)
class Cost:
    """What a hit did: the steps done by then, those done again, and the time to the next one."""

    step: int
    again_steps: int
    back_s: float


def interrupt(
    target: Target, points: Sequence[Point], longest_s: float, say: Callable[[str], None]
) -> tuple[str, list[Hit], Legs]:
    """Throw each point's fault once the run is there; returns the job's last state and the hits.

    Raises:
        TimeoutError: the job does not end.
    """
    legs, hits = Legs(target.training.folder(target.name).spool), []
    coming, deadline = list(points), time.monotonic() + longest_s
    while (facts := target.facts())["JobState"] not in ENDED:
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {target.job} does not end in {longest_s:.0f} s: {facts}")
        if done := target.cluster.release(target.job, facts):
            say(done)
        asked_s = time.monotonic()
        while time.monotonic() < asked_s + ASK_S:
            if coming and (hit := _hit(target, coming[0], legs.read_on(), hits)):
                hits.append(hit)
                coming.pop(0)
            time.sleep(LOOK_S)
    legs.read_on()
    return facts["JobState"], hits, legs


def cost(hit: Hit, legs: Legs) -> Cost | None:
    """Return what a hit cost; None where no attempt came after it, as the training was done."""
    found = legs.after(hit.attempt)
    if found is None:
        return None
    leg, following = found
    return Cost(leg.last, leg.last - following.first + 1, following.began_s - hit.time_s)


def _hit(target: Target, point: Point, leg: Leg | None, hits: Sequence[Hit]) -> Hit | None:
    """Throw a point's fault if the run is there, in an attempt that was not hit yet."""
    if leg is None or leg.last < point.step or (hits and leg.attempt <= hits[-1].attempt):
        return None
    now_s = time.time()
    try:
        throw(point.kind, target)
    except NoTarget:
        return None
    return Hit(point, leg.attempt, now_s)
