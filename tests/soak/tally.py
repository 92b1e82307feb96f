"""The results of interrupted trainings, as lines for people and as a verdict."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.soak.draw import KINDS, Point
from tests.soak.interrupt import Cost

RESTART_GOAL_S = 20.0
IN_ALLOCATION = "kill"
"""The others are answered by a requeue, which waits for SLURM."""


@dataclass(frozen=True)
class Place:
    """Where in a training a step lies; stages and epochs count from 1."""

    stage: int
    epoch: int
    sample: int
    num_samples: int


@dataclass(frozen=True)
class Result:
    """A point and what came of it; no cost and place where it interrupted nothing."""

    setting: str
    point: Point
    cost: Cost | None
    place: Place | None
    is_same: bool

    @property
    def is_good(self) -> bool:
        """Return whether it was an interruption that left no trace."""
        return self.cost is not None and self.is_same

    def line(self) -> str:
        """Return what happened at this point."""
        head = f"{self.setting:8} {self.point.kind:8}"
        if self.cost is None or self.place is None:
            return f"{head} drawn at step {self.point.step}: interrupted nothing"
        cost, place = self.cost, self.place
        return (
            f"{head} at step {cost.step:3}, stage {place.stage}, epoch {place.epoch:2} after "
            f"{place.sample:4} of {place.num_samples} samples: {cost.again_steps:2} steps again, "
            f"next step after {cost.back_s:5.1f} s; "
            + ("same bits and samples" if self.is_same else "NOT THE SAME as in peace")
        )


def excess(results: Sequence[Result], save_every: int) -> list[str]:
    """Name the points after which more was done again than is allowed.

    A kill may cost the steps since the last save, and those while that one was being written.
    """
    allowed = {**dict.fromkeys(KINDS, 0), IN_ALLOCATION: 2 * save_every - 1}
    return [
        f"{result.setting}: {result.point.kind} at step {result.cost.step} cost "
        f"{result.cost.again_steps} steps, {allowed[result.point.kind]} are allowed"
        for result in results
        if result.cost and result.cost.again_steps > allowed[result.point.kind]
    ]


def summary(setting: str, results: Sequence[Result], num_stages: int) -> str:
    """Return one line for a setting: `20 of 20 (kill 4, ...), stages 1-4: 5, 5, 6, 4`."""
    good = [result for result in results if result.is_good]
    kinds = Counter(result.point.kind for result in good)
    stages = Counter(result.place.stage for result in good if result.place)
    mid = sum(result.place.sample > 0 for result in good if result.place)
    return (
        f"{setting:8} {len(good)} of {len(results)} "
        f"({', '.join(f'{kind} {kinds[kind]}' for kind in KINDS)}), "
        f"stages 1-{num_stages}: "
        + ", ".join(str(stages[stage]) for stage in range(1, num_stages + 1))
        + f"; {mid} in mid-epoch"
    )


def cost_lines(results: Sequence[Result], save_every: int) -> list[str]:
    """Return what each kind cost: steps done again, and the seconds to the next step."""
    lines = [
        f"a checkpoint every {save_every} steps; steps done again, and seconds to the next step:",
        "kind    points  median most     median  worst",
    ]
    for kind in KINDS:
        costs = [result.cost for result in results if result.cost and result.point.kind == kind]
        if costs:
            again, back = zip(*((cost.again_steps, cost.back_s) for cost in costs), strict=True)
            lines.append(
                f"{kind:9} {len(costs):3} {statistics.median(again):7.1f} {max(again):4} "
                f"{statistics.median(back):10.1f} {max(back):6.1f}"
            )
    return lines


def restart_line(results: Sequence[Result]) -> str:
    """Return how soon a restart inside the allocation makes its next step."""
    back = [
        result.cost.back_s
        for result in results
        if result.cost and result.point.kind == IN_ALLOCATION
    ]
    if not back:
        return "no restart inside the allocation"
    within = sum(seconds <= RESTART_GOAL_S for seconds in back)
    return (
        f"crash to next step inside the allocation: median {statistics.median(back):.1f} s, "
        f"worst {max(back):.1f} s, {within} of {len(back)} within {RESTART_GOAL_S:.0f} s"
    )
