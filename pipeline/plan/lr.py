"""Learning rate as a function of the step, as google/automl's `utils.py` computes it.

Warmup is linear from 0; the decay is counted from step 0, not from the end of the warmup. The
exponential decay is a staircase whose stairs may be a fraction of an epoch (0.97 every 2.4 epochs).
One schedule runs straight through all progressive stages.
"""

import math
from fractions import Fraction
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from pipeline.plan.durations import Clock
from pipeline.spec import Misuse, Spec

Kind = Literal["exponential", "cosine", "linear", "constant"]


class LrSpec(Spec):
    """The schedule. `peak` is the rate for the whole global batch, not for 256 samples."""

    kind: Kind
    peak: float = Field(gt=0)
    warmup_epochs: float | None = Field(None, ge=0)
    warmup_steps: int | None = Field(None, ge=0)
    warmup_percent: float | None = Field(None, ge=0, le=100)
    decay_rate: float | None = Field(None, gt=0, le=1)
    decay_epochs: float | None = Field(None, gt=0)
    decay_steps: int | None = Field(None, gt=0)
    minimum: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        units = (self.warmup_epochs, self.warmup_steps, self.warmup_percent)
        if sum(value is not None for value in units) > 1:
            raise ValueError(
                "give one of warmup_epochs, warmup_steps and warmup_percent and set the others to "
                "null, for example lr.warmup_epochs=null lr.warmup_steps=100"
            )
        decay = (self.decay_epochs, self.decay_steps)
        num_decays = sum(value is not None for value in decay)
        if self.kind == "exponential" and (self.decay_rate is None or num_decays != 1):
            raise ValueError("kind 'exponential' needs decay_rate and one of decay_epochs|_steps")
        if self.kind != "exponential" and (self.decay_rate is not None or num_decays):
            raise ValueError(
                f"decay_rate, decay_epochs and decay_steps have no effect with kind '{self.kind}'; "
                "set them to null or use kind 'exponential'"
            )
        if self.minimum > self.peak:
            raise ValueError(f"minimum {self.minimum} is above peak {self.peak}")
        return self


class LrSchedule(NamedTuple):
    """An `LrSpec` with all durations in steps: plain numbers, cheap to evaluate and to pickle."""

    kind: Kind
    peak: float
    minimum: float
    warmup_steps: int
    total_steps: int
    decay_rate: float
    stair: tuple[int, int]  # length of a stair in steps, as numerator and denominator

    def lr_at(self, step: int) -> float:
        """Return the learning rate with which step `step` (from 0) updates the weights."""
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        return max(self.minimum, self.peak * self._decay(step))

    def _decay(self, step: int) -> float:
        if self.kind == "exponential":
            numerator, denominator = self.stair
            return self.decay_rate ** (step * denominator // numerator)
        if self.kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * step / self.total_steps))
        if self.kind == "linear":
            return 1.0 - step / self.total_steps
        return 1.0


def make_schedule(spec: LrSpec, clock: Clock) -> LrSchedule:
    """Put durations in steps; a warmup of 0.5 steps is none, as in the released code.

    Raises:
        Misuse: the warmup does not end before the training does.
    """
    warmup = int(clock.steps(spec.warmup_epochs, spec.warmup_steps, spec.warmup_percent))
    if warmup >= clock.total_steps:
        raise Misuse(
            f"lr: the warmup takes {warmup} steps, but the training has {clock.total_steps}; "
            "shorten lr.warmup_epochs (or _steps, _percent), or train longer (length)"
        )
    stair = Fraction(1)
    if spec.kind == "exponential":
        stair = clock.steps(spec.decay_epochs, spec.decay_steps)
    return LrSchedule(
        kind=spec.kind,
        peak=spec.peak,
        minimum=spec.minimum,
        warmup_steps=warmup,
        total_steps=clock.total_steps,
        decay_rate=spec.decay_rate or 1.0,
        stair=(stair.numerator, stair.denominator),
    )
