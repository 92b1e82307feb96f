"""Settings of checkpoints."""

from pydantic import Field

from pipeline.spec import Spec


class CheckpointSpec(Spec):
    """When checkpoints are taken and how many stay: the last `keep`, and the best by EMA."""

    every_steps: int | None = Field(default=None, gt=0)
    every_percent: float = Field(default=1.0, gt=0, le=100)
    keep: int = Field(default=3, ge=1)

    def interval(self, total_steps: int) -> int:
        """Return the steps between two checkpoints: `every_steps`, else `every_percent`."""
        return self.every_steps or max(1, round(total_steps * self.every_percent / 100))
