"""From a micro-batch of uint8 images to what the model sees: augmented, normalised, mixed, noised.

All draws are keyed by (seed, step, micro-batch), so whichever rank does the work gets the same.
What a sample's worker drew but left to the device (`augment.device: gpu`) is applied here. Nothing
waits for the device, so the next step's work is queued while this one's is done.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.data.batches import MicroBatch
from pipeline.data.mix import mix
from pipeline.data.ops_device import apply_ops_batch
from pipeline.data.preprocess import PreprocessSpec
from pipeline.data.transfer import upload
from pipeline.models.network import Network
from pipeline.models.noise import Noise
from pipeline.optim.loss import Kind as LossKind
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
    loss: LossKind = "softmax"
    """Which loss the targets are for."""

    def images(self, uint8: Tensor) -> Tensor:
        """Return (B, 3, px, px) normalised floats for (B, px, px, 3) uint8 images."""
        pixels = uint8.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        mean, std = self._mean_and_std
        images = (pixels - mean) / std
        return images if self.channels_last else images.contiguous()

    @cached_property
    def _mean_and_std(self) -> Tensor:
        """(2, 1, 3, 1, 1), made once: a copy from fresh host memory waits for the device."""
        with torch.inference_mode(False):  # evaluation may ask first, training shall use it too
            values = torch.tensor([self.preprocess.mean, self.preprocess.std], device=self.device)
            return values.view(2, 1, 3, 1, 1)

    def train(
        self, batch: MicroBatch, plan: StepPlan, model: Network
    ) -> tuple[Tensor, Tensor, Noise]:
        """Return mixed images, soft targets (B, C) and the noise of one micro-batch."""
        key = (batch.step, batch.index)
        labels = batch.labels.to(self.device, non_blocking=True)
        targets = soft_targets(labels, self.num_classes, self.label_smoothing, self.loss)
        images, targets = mix(
            self.images(self._augmented(batch)),
            targets,
            plan.mixup,
            plan.cutmix,
            keyed(Stream.MIX, self.seed, *key),
            plan.cutmix_labels == "mean",
        )
        noise = model.draw_noise(len(labels), plan.dropout, keyed(Stream.NOISE, self.seed, *key))
        return images, targets, Noise(*(upload(factors, self.device) for factors in noise))

    def _augmented(self, batch: MicroBatch) -> Tensor:
        """Return the batch's uint8 images, with the operations that are left to the device."""
        if batch.ops is None:
            return batch.images
        return apply_ops_batch(batch.images.to(self.device, non_blocking=True), batch.ops)
