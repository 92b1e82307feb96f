"""Settings of evaluation."""

from pydantic import Field

from pipeline.spec import Spec


class EvaluateSpec(Spec):
    """When to evaluate and how large the batches of each rank are; the end is always evaluated."""

    every_steps: int | None = Field(default=None, gt=0)
    every_percent: float = Field(default=5.0, gt=0, le=100)
    batch: int = Field(default=128, ge=1)

    def interval(self, total_steps: int) -> int:
        """Return the steps between two evaluations."""
        return self.every_steps or max(1, round(total_steps * self.every_percent / 100))
