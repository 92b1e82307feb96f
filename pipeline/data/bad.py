"""What happens with a sample that cannot be used: its shard is gone, cut or changed, or it is no
image.

Under `strict` the first one ends the attempt. Under `budget` another sample stands in for it, drawn
by a key, so that every rank, worker and attempt takes the same one and all steps keep their size;
the ranks' counts are added up, and more than the budget ends the attempt on all of them at once.
"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Literal, NamedTuple, TypeVar

from pydantic import Field

from pipeline.data.reader import BrokenSample
from pipeline.plan.draws import Stream, keyed
from pipeline.spec import Failure, Spec

R = TypeVar("R")

ATTEMPTS = 16
"""Samples tried in place of a bad one before the data counts as gone."""
_NEAR = 64
_WIDER = 4
_NAMED_IN_ERRORS = 5


class BadSpec(Spec):
    """What training does with samples that cannot be used; evaluation is always strict."""

    policy: Literal["strict", "budget"] = "strict"
    """strict: the first one ends the attempt. budget: another sample takes its place."""
    budget: float = Field(default=0.001, gt=0, lt=1)
    """Part of an epoch's samples, and of all samples used so far, that may be replaced."""


class Replaced(NamedTuple):
    """A bad sample, the one that was used in its place (its id; key and tar where the id is only a
    hash), and what was wrong (shard and key)."""

    sample_id: int
    by: int | str
    reason: str


def replacement(seed: int, sample_id: int, attempt: int, num_samples: int) -> int:
    """Return the sample that stands in for `sample_id`, the `attempt`-th (from 0) that is tried.

    Never `sample_id` itself, so there must be two samples at least. The first ones lie near, where
    reads are warm and shards at hand; each further attempt looks in a range four times as wide, so
    that a few lead out of a shard that is gone.
    """
    assert num_samples >= 2 and 0 <= sample_id < num_samples
    reach = min(_NEAR * _WIDER**attempt, num_samples - 1)
    draw = keyed(Stream.REPLACE, seed, sample_id, attempt).integers(1, reach + 1)
    return (sample_id + int(draw)) % num_samples


def read_replacing(
    sample_id: int, use: Callable[[int], R], spec: BadSpec, seed: int, num_samples: int
) -> tuple[R, Replaced | None]:
    """Return `use(sample_id)`, or under `budget` that of its replacement and what was replaced.

    Args:
        sample_id: the sample that the order asks for.
        use: reads and decodes a sample by id; raises BrokenSample. Its draws should be keyed by
            the sample that was asked for: then a replacement that comes twice looks different.
        spec: the policy.
        seed: of the run.
        num_samples: of the split.

    Raises:
        BrokenSample: the sample cannot be used, and under `budget` no replacement either.
    """
    try:
        return use(sample_id), None
    except BrokenSample as error:
        first = last = error
    if spec.policy == "strict" or num_samples < 2:
        raise first
    for attempt in range(ATTEMPTS):
        by = replacement(seed, sample_id, attempt, num_samples)
        try:
            return use(by), Replaced(sample_id, by, str(first))
        except BrokenSample as error:
            last = error
    raise BrokenSample(
        f"{first}; the {ATTEMPTS} samples tried in its place cannot be used either: {last}"
    )


class Tally:
    """Counts the bad samples of a run, the same on all ranks, and knows the budget.

    Bad samples come in clumps: a shard is read by one lane, so by one rank within some hundred
    steps. Therefore the counts of all ranks are added, and `budget` of one epoch is allowed from
    the start.

    Args:
        spec: the policy.
        num_samples: of the split.
        global_batch: samples of a step.
        steps: that attempts before this one have made.
        bad: samples that were replaced in them.
    """

    def __init__(
        self, spec: BadSpec, num_samples: int, global_batch: int, steps: int = 0, bad: int = 0
    ) -> None:
        self.bad = bad
        self.used = steps * global_batch
        self._spec, self._global_batch = spec, global_batch
        self._at_least = max(num_samples, ceil(1 / spec.budget))
        self._named: set[int] = set()
        self._first: list[str] = []

    def note(self, replaced: Sequence[Replaced]) -> list[Replaced]:
        """Remember what this rank replaced; return those that it had not met before."""
        fresh = {item.sample_id: item for item in replaced if item.sample_id not in self._named}
        self._named.update(fresh)
        room = _NAMED_IN_ERRORS - len(self._first)
        self._first += [item.reason for item in fresh.values()][:room]
        return list(fresh.values())

    def add(self, bad: int) -> None:
        """Add a step, in which all ranks together replaced `bad` samples."""
        self.bad += bad
        self.used += self._global_batch

    def back_to(self, steps: int, bad: int) -> None:
        """Forget the steps after `steps`, which are undone, and what was bad in them."""
        self.bad, self.used = bad, steps * self._global_batch

    def check(self) -> None:
        """Raise a Failure that names the first ones of this rank if the budget is spent."""
        if self.bad > self._spec.budget * max(self.used, self._at_least):
            raise Failure(self._explain())

    def _explain(self) -> str:
        named = "; the first here: " + " | ".join(self._first) if self._first else ""
        return (
            f"{self.bad} of {self.used} samples of this run could not be used and were "
            f"replaced: more than loader.bad.budget {self._spec.budget:g} of an epoch or of those "
            f"used (each one is named in the log of its rank){named}; repair the shards, or raise "
            "the budget if so many may be missing"
        )
