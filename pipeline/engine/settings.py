"""Settings of the guards: when a training gives up on a step, on a stretch of data, on itself.

And of what is watched meanwhile.
"""

from pydantic import Field

from pipeline.spec import Spec


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
    """What is watched: every `pace_every_steps` steps the ranks compare their times, 0: never."""

    pace_every_steps: int = Field(default=50, ge=0)
