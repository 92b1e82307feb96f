"""One optimizer step: micro-batches add up, BatchNorm statistics meet once, the average follows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import MicroBatch
from pipeline.engine.inputs import Inputs
from pipeline.models.batchnorm import commit_statistics, discard_statistics
from pipeline.models.efficientnet import EfficientNet
from pipeline.models.noise import Noise
from pipeline.optim.ema import Ema
from pipeline.parallel.strategy import Compute, Strategy
from pipeline.parallel.world import World
from pipeline.plan.plan import StepPlan

WARM_UP_TRIES = 30


@dataclass(frozen=True)
class Stepper:
    """Everything one step needs; the loop calls it with micro-batches and the step's plan."""

    world: World
    model: EfficientNet
    strategy: Strategy
    ema: Ema
    inputs: Inputs
    loss: Callable[[Tensor, Tensor], Tensor]

    def run(self, batches: list[MicroBatch], plan: StepPlan) -> Tensor:
        """Train one step; returns this rank's share of the global mean loss."""
        self.model.train()
        total = torch.zeros((), device=self.world.device)
        for number, batch in enumerate(batches, start=1):
            images, targets, noise = self.inputs.train(batch, plan, self.model)

            compute = self._compute(images, targets, noise, len(batches))
            total += self.strategy.micro_step(compute, last=number == len(batches))
        commit_statistics(self.model, len(batches), self.world.sum, plan.micro_batches)
        if self.strategy.step(plan.lr):
            self.ema.update(self.model, plan.ema_decay)
        return total / self.world.size

    def _compute(self, images: Tensor, targets: Tensor, noise: Noise, parts: int) -> Compute:
        return lambda model: self.loss(model(images, noise), targets) / parts

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
