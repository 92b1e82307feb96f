"""From a micro-batch of uint8 images to what the model sees: normalised, mixed, with its noise.

All draws are keyed by (seed, step, micro-batch), so whichever rank does the work gets the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.batches import MicroBatch
from pipeline.data.mix import mix
from pipeline.data.preprocess import PreprocessSpec
from pipeline.models.efficientnet import EfficientNet
from pipeline.models.noise import Noise
from pipeline.optim.loss import soft_targets
from pipeline.plan.draws import Stream, keyed
from pipeline.plan.plan import StepPlan


@dataclass(frozen=True)
class Inputs:
    """Turns micro-batches into model inputs on the rank's device."""

    preprocess: PreprocessSpec
    num_classes: int
    label_smoothing: float
    seed: int
    device: torch.device
    channels_last: bool

    def images(self, uint8: Tensor) -> Tensor:
        """Return (B, 3, px, px) normalised floats for (B, px, px, 3) uint8 images."""
        pixels = uint8.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        mean = torch.tensor(self.preprocess.mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.preprocess.std, device=self.device).view(1, 3, 1, 1)
        images = (pixels - mean) / std
        return images if self.channels_last else images.contiguous()

    def train(
        self, batch: MicroBatch, plan: StepPlan, model: EfficientNet
    ) -> tuple[Tensor, Tensor, Noise]:
        """Return mixed images, soft targets (B, C) and the noise of one micro-batch."""
        key = (batch.step, batch.index)
        labels = batch.labels.to(self.device, non_blocking=True)
        targets = soft_targets(labels, self.num_classes, self.label_smoothing)
        images, targets = mix(
            self.images(batch.images),
            targets,
            plan.mixup,
            plan.cutmix,
            keyed(Stream.MIX, self.seed, *key),
        )
        noise = model.draw_noise(len(labels), plan.dropout, keyed(Stream.NOISE, self.seed, *key))
        return images, targets, noise.to(self.device)
