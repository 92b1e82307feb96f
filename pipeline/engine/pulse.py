"""What the ranks tell each other after each step, without waiting for it.

One small sum travels while the next step computes and is read a step later: the mean loss, how many
bad samples were replaced, and whether any rank wants to stop. Reading late means that no step waits
for the network or the GPU, and all ranks still decide the same thing at the same step.
"""

from dataclasses import dataclass

import torch

from pipeline.parallel.world import World


@dataclass(frozen=True)
class Beat:
    """The agreed facts of one step."""

    step: int
    loss: float
    stop: bool
    bad_samples: int


class Pulse:
    """Sums one step's facts over ranks; `exchange` returns those of the step before."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: tuple[int, torch.Tensor, torch.distributed.Work | None] | None = None

    def exchange(
        self, step: int, loss_share: torch.Tensor, wants_stop: bool, bad_samples: int
    ) -> Beat | None:
        """Send this step's facts and return the previous step's; None before there are any.

        `loss_share` sums to the global mean loss over ranks, `bad_samples` to all that were bad.
        """
        before = self.flush()
        facts = torch.zeros(3, dtype=torch.float64, device=self._world.device)
        facts[0] = loss_share
        facts[1] = float(wants_stop)
        facts[2] = float(bad_samples)
        self._pending = (step, facts, self._world.sum_later(facts))
        return before

    def flush(self) -> Beat | None:
        """Return the facts still on their way."""
        if self._pending is None:
            return None
        step, facts, work = self._pending
        self._pending = None
        if work is not None:
            work.wait()
        loss, stop, bad_samples = facts.tolist()
        return Beat(step, loss, stop > 0, round(bad_samples))
