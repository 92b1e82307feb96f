"""Durations in the unit an author thinks in (`_epochs`, `_steps`, `_percent`), turned into steps.

All of it is rational arithmetic: 350 epochs of 1,256,144 samples in batches of 4,096 are 107,336
steps, and an epoch is 306.68 steps, not 306 or 307.
"""

from fractions import Fraction
from typing import NamedTuple, Self

from pydantic import Field, model_validator

from pipeline.spec import Misuse, Spec


class LengthSpec(Spec):
    """How long to train: `epochs` or `steps`, and with epochs at least `min_steps`."""

    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    min_steps: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "give exactly one of epochs and steps (the other one null, for example "
                "length.epochs=null length.steps=500)"
            )
        return self

    def total_steps(self, global_batch: int, num_samples: int) -> int:
        """Return floor(epochs * num_samples / global_batch), or `steps`; at least `min_steps`."""
        if self.steps is not None:
            return max(self.steps, self.min_steps)
        assert self.epochs is not None
        total = int(exact(self.epochs) * num_samples / global_batch)
        return max(total, self.min_steps)


class Clock(NamedTuple):
    """Converts the durations of one training. A value is None where its unit was not used."""

    steps_per_epoch: Fraction
    total_steps: int

    def steps(
        self, epochs: float | None, steps: float | None = None, percent: float | None = None
    ) -> Fraction:
        """Return the one duration that is given, in steps (a fraction), or 0 when none is."""
        if epochs is not None:
            return exact(epochs) * self.steps_per_epoch
        if steps is not None:
            return exact(steps)
        return exact(percent or 0) * self.total_steps / 100


def make_clock(length: LengthSpec, global_batch: int, num_samples: int) -> Clock:
    """Fix the total number of steps; all other durations are measured against it.

    Raises:
        Misuse: the data set is empty, or too small for a single step.
    """
    if num_samples < 1 or global_batch < 1:
        raise Misuse(
            f"cannot plan {num_samples} samples in batches of {global_batch}: "
            "both data (num_train) and batch.global_size must be 1 or more"
        )
    total = length.total_steps(global_batch, num_samples)
    if total < 1:
        raise Misuse(
            f"field 'length.epochs' is {length.epochs}: {num_samples} samples in batches of "
            f"{global_batch} do not fill one step; raise length.epochs or lower batch.global_size"
        )
    return Clock(Fraction(num_samples, global_batch), total)


def exact(value: float) -> Fraction:
    """Return the number as it was written: 2.4 is 12/5, not the nearest binary fraction."""
    return Fraction(str(value))
