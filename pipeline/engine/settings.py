"""Settings of the guards and of the watchdog: when a training gives up on what, and how soon."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from pipeline.run.beats import BEAT_EVERY_S, MISSED_BEATS, Section, beat_interval_s
from pipeline.spec import Misuse, Spec

_FIELDS = {
    Section.SETUP: "setup_s",
    Section.COMPILE: "compile_s",
    Section.DATA: "data_s",
    Section.STEP: "step_s",
    Section.EVALUATE: "evaluate_s",
    Section.CHECKPOINT: "checkpoint_s",
    Section.FINISH: "checkpoint_s",
}


class GuardSpec(Spec):
    """What happens where the loss is not finite, and what is compared at checkpoints.

    A step whose loss is not finite on any rank is left out on all of them. More than
    `max_bad_steps` of them in a row send the training back to its last checkpoint, and it goes on
    behind the data that led there; after `max_rollbacks` of these in a run the attempt fails.
    """

    max_bad_steps: int = Field(default=10, ge=0)
    max_rollbacks: int = Field(default=2, ge=0)
    compare_ranks: bool = True
    """Compare the state of all ranks before it is saved, bit by bit."""


class WatchSpec(Spec):
    """How long a rank may be in each part of an attempt before the attempt counts as hung.

    The deadlines are generous: they have to be longer than anything that ends by itself, and all
    of them shorter than `compute.collective_timeout_s`.
    """

    setup_s: float = 1800.0
    """From the reading of the config to the model on its device; while shards are brought to the
    node, it counts from the last line about them."""
    compile_s: float = 3600.0
    """Rehearsals and the throw-away step, and where the model is compiled, a stage's first step."""
    data_s: float = 600.0
    """Waiting for a batch; `loader.timeout_s` is shorter and names the worker."""
    step_s: float = 600.0
    """One optimizer step, with the wait for the other ranks."""
    evaluate_s: float = 3600.0
    """One evaluation of the whole split."""
    checkpoint_s: float = 1800.0
    """Collecting the state and waiting for the checkpoint before; also the package at the end."""
    beat_every_s: float = Field(default=BEAT_EVERY_S, ge=0.1)
    """Each rank writes so often where it is; over 250 ranks less often."""
    pace_every_steps: int = Field(default=50, ge=0)
    """So often the ranks compare their times, and a slow one is named; 0: never."""

    @field_validator(*dict.fromkeys(_FIELDS.values()))
    @classmethod
    def _deadlines_are_there(cls, value: float) -> float:
        if value <= 0:
            raise ValueError(
                "a deadline is over 0 s; for one that never comes use 86400, with "
                "compute.collective_timeout_s above it"
            )
        return value

    @model_validator(mode="after")
    def _beats_come_before_deadlines(self) -> Self:
        field, shortest_s = self.shortest
        if shortest_s < MISSED_BEATS * self.beat_every_s:
            raise ValueError(
                f"{field} is {shortest_s:g}, beat_every_s {self.beat_every_s:g}: a rank that "
                f"gives no sign of life is known after {MISSED_BEATS} beats; set beat_every_s to "
                f"{shortest_s / MISSED_BEATS:.2g} or less"
            )
        return self

    def check_world(self, world: int) -> None:
        """Refuse a deadline that is too short for the beats of so many ranks.

        Raises:
            Misuse: names the field, its value and the remedy.
        """
        field, shortest_s = self.shortest
        wanted_s = MISSED_BEATS * beat_interval_s(self.beat_every_s, world)
        if shortest_s < wanted_s:
            raise Misuse(
                f"watch.{field} is {shortest_s:g}: {world} ranks beat every "
                f"{wanted_s / MISSED_BEATS:g} s, so one that gives no sign of life is known after "
                f"{wanted_s:g} s; set watch.{field} to {wanted_s:g} or more"
            )

    def field(self, section: Section) -> str:
        """Return the name of the field with a section's deadline."""
        return _FIELDS[section]

    @property
    def shortest(self) -> tuple[str, float]:
        """Return the field of the shortest deadline, and the deadline."""
        return min(self._deadlines(), key=lambda item: item[1])

    @property
    def longest(self) -> tuple[str, float]:
        """Return the field of the longest deadline, and the deadline."""
        return max(self._deadlines(), key=lambda item: item[1])

    def _deadlines(self) -> list[tuple[str, float]]:
        return [(name, float(getattr(self, name))) for name in dict.fromkeys(_FIELDS.values())]
