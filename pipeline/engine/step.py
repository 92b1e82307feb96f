"""One optimizer step: micro-batches add up, BatchNorm statistics meet once, the average follows.

Whether the step counts is asked of all ranks as soon as this rank's share of the loss is known, and
read before the update. By then the backward pass is queued, so a GPU has work while the host waits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.batches import MicroBatch
from pipeline.engine.guard import Overflows
from pipeline.engine.inputs import Inputs
from pipeline.engine.together import joined
from pipeline.models.batchnorm import commit_statistics, discard_statistics
from pipeline.models.network import Network
from pipeline.models.noise import Noise
from pipeline.optim.ema import Ema
from pipeline.parallel.strategy import Strategy
from pipeline.parallel.world import World
from pipeline.plan.plan import StepPlan
from pipeline.run import faults

WARM_UP_TRIES = 30

Agree = Callable[[Tensor], Callable[[], bool]]
"""Starts to ask all ranks about a step, given this rank's share of the mean loss (on the device);
what it returns waits for the answer: whether the step counts."""


@dataclass(frozen=True)
class Stepper:
    """Everything one step needs; the loop calls it with micro-batches and the step's plan."""

    world: World
    model: Network
    strategy: Strategy
    ema: Ema
    inputs: Inputs
    loss: Callable[[Tensor, Tensor], Tensor]
    overflows: Overflows = field(default_factory=Overflows)

    @property
    def is_compiled(self) -> bool:
        """Return whether new shapes are compiled before they are computed."""
        return self.model._compiled_call_impl is not None

    def run(self, batches: list[MicroBatch], plan: StepPlan, agree: Agree | None = None) -> Tensor:
        """Train one step; returns this rank's share of the global mean loss.

        Without `agree` every step counts. One that does not leaves no trace: neither weights,
        optimizer and loss scale nor the average and BatchNorm's statistics change.
        """
        self.model.train()
        together = self.model.spec.together(self.world.size)
        parts = len(batches) // together
        share = _Share(parts, self.world, agree)
        for part in range(parts):
            own = batches[part * together : (part + 1) * together]
            images, targets, noise = joined(
                [self.inputs.train(batch, plan, self.model) for batch in own]
            )
            if faults.hit("forward", plan.step + 1, self.world.rank):
                targets = targets * math.nan
            self.strategy.micro_step(
                self._compute(images, targets, noise, share), last=part == parts - 1
            )
        if not share.counts():
            self.forget()
            return share.mean
        commit_statistics(self.model, parts, self.world.sum, plan.micro_batches // together)
        if self.overflows.note(self.strategy.step(plan.lr)):
            self.ema.update(self.model, plan.ema_decay, self.strategy.weights())
        return share.mean

    def forget(self) -> None:
        """Drop the gradients and statistics that were collected since the last step."""
        self.strategy.discard()
        discard_statistics(self.model)

    def _compute(
        self, images: Tensor, targets: Tensor, noise: Noise, share: "_Share"
    ) -> Callable[[nn.Module], Tensor]:
        return lambda model: share.add(self.loss(model(images, noise), targets) / share.parts)

    def warm_up(self, px: int, batch: int) -> None:
        """Make one throw-away step of the real shape, before any state is loaded.

        DDP orders its buckets after the first backward and sharded optimizers make their state
        in the first step; with this a resumed attempt adds in the same order as one that never
        stopped. It also finds a lack of memory before step 1. Weights must be restored after it.
        """
        pixels = np.random.default_rng(0).integers(0, 256, (batch, px, px, 3), dtype=np.uint8)
        images = self.inputs.images(torch.from_numpy(pixels))
        targets = torch.full(
            (batch, self.inputs.num_classes), 1 / self.inputs.num_classes, device=images.device
        )
        self.model.train()
        for _ in range(WARM_UP_TRIES):  # fp16 halves its scale until gradients are finite
            self.strategy.micro_step(lambda model: self.loss(model(images), targets), last=True)
            if self.strategy.step(0.0):
                break
        discard_statistics(self.model)


class _Share:
    """This rank's share of a step's mean loss, as its micro-batches add up."""

    def __init__(self, parts: int, world: World, agree: Agree | None) -> None:
        self.parts = parts
        self.mean = torch.zeros((), device=world.device)
        self._missing, self._size, self._agree = parts, world.size, agree
        self._answer: Callable[[], bool] = lambda: True

    def add(self, loss: Tensor) -> Tensor:
        """Add a micro-batch's part and return it; after the last one the ranks are asked."""
        self.mean += loss.detach()
        self._missing -= 1
        if not self._missing:
            self.mean = self.mean / self._size
            self._answer = self._agree(self.mean) if self._agree else self._answer
        return loss

    def counts(self) -> bool:
        """Return, once all ranks have answered, whether the step counts."""
        return self._answer()
