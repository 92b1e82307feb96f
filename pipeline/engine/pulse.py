"""What the ranks tell each other in each step: one small sum, the mean loss in it.

It is sent when the last forward pass has given its loss, travels while the backward pass runs, and
is read before the update, so that all ranks leave out the same step. On a GPU the sum and its copy
to the host have a stream of their own: reading waits for the forward passes of all ranks and never
for the backward pass, which keeps the GPU busy meanwhile.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.parallel.world import World


@dataclass(frozen=True)
class Beat:
    """The agreed facts of one step."""

    step: int
    loss: float
    stop: bool
    bad_samples: int

    @property
    def is_bad(self) -> bool:
        """Return whether any rank's loss was infinite or not a number."""
        return not math.isfinite(self.loss)


class Pulse:
    """Sums one step's facts over the ranks: `send` starts it, `read` waits for it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._side = torch.cuda.Stream(world.device) if world.device.type == "cuda" else None
        self._sent: tuple[int, Callable[[], list[float]]] | None = None
        self._beat: Beat | None = None

    def send(self, step: int, loss_share: Tensor, wants_stop: bool, bad_samples: int) -> None:
        """Start to add up a step's facts; waits for nothing.

        `loss_share` sums to the global mean loss over ranks, `bad_samples` to all that were bad.
        """
        facts = torch.zeros(3, dtype=torch.float64, device=self._world.device)
        facts[0] = loss_share
        facts[1] = float(wants_stop)
        facts[2] = float(bad_samples)
        work = self._world.sum_later(facts)
        self._sent = step, self._on_its_way(facts, work)

    def read(self) -> Beat:
        """Return the facts that were sent last, once all ranks have sent theirs."""
        if self._sent is not None:
            step, arrive = self._sent
            loss, stop, bad_samples = arrive()
            self._beat, self._sent = Beat(step, loss, stop > 0, round(bad_samples)), None
        assert self._beat is not None, "nothing was sent"
        return self._beat

    def _on_its_way(self, facts: Tensor, work: Any) -> Callable[[], list[float]]:
        """Return what waits for the sum and gives it out."""
        if self._side is None:
            return lambda: _added_up(facts, work)
        self._side.wait_stream(torch.cuda.current_stream(self._world.device))
        with torch.cuda.stream(self._side):
            if work is not None:
                work.wait()  # the side stream does, not the host
            there = torch.empty(3, dtype=facts.dtype, pin_memory=True)
            there.copy_(facts, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)  # sleeps: loader workers want the core
            arrived.record(self._side)

        def arrive() -> list[float]:
            arrived.synchronize()
            assert facts.is_cuda  # held until here: the copy reads it on another stream
            return there.tolist()

        return arrive


def _added_up(facts: Tensor, work: Any) -> list[float]:
    if work is not None:
        work.wait()
    return facts.tolist()
