"""What every model is to the rest of the pipeline: features, one classifier, noise from outside.

The models of the table (`efficientnet.py`) and timm's (`baseline.py`) stand behind this one class,
so that both train, evaluate, are packaged and transfer by the same code.
"""

import numpy as np
import torch
from torch import nn

from pipeline.models.noise import Noise, draw_noise
from pipeline.models.table import TIMM, ModelSpec


class Network(nn.Module):
    """A trunk that gives features (B, width), and `classifier` over them.

    Whatever the trunk is called, the head's tensors are named `classifier.weight` and
    `classifier.bias`, so that a head can be told from a trunk. `drop_rates` holds one rate for each
    place of the trunk that drops branches, in the order of the forward pass.
    """

    spec: ModelSpec
    classifier: nn.Linear
    drop_rates: tuple[float, ...]

    def forward(self, images: torch.Tensor, noise: Noise | None = None) -> torch.Tensor:
        """Return logits (B, classes) of normalised float images (B, 3, px, px).

        `noise` acts in training mode only; without it nothing is dropped.
        """
        features = self.features(images, noise)
        if noise is not None and self.training:
            features = features * noise.dropout.to(features.dtype)
        return self.classifier(features)

    def features(self, images: torch.Tensor, noise: Noise | None = None) -> torch.Tensor:
        """Return the pooled features (B, width) that the classifier works on."""
        raise NotImplementedError

    def draw_noise(self, batch: int, dropout: float, rng: np.random.Generator) -> Noise:
        """Draw masks for `batch` images with the stage's `dropout`, 0 <= dropout < 1 (on the CPU).

        Drop-path rates are the model's own.
        """
        return draw_noise(self.drop_rates, dropout, batch, self.classifier.in_features, rng)


def build_network(spec: ModelSpec, num_classes: int, rng: np.random.Generator | None) -> Network:
    """Build the model that `spec` names on the CPU in fp32, with first weights drawn from `rng`.

    Without `rng` the weights are of no use, for states that are loaded next. No global random state
    is changed.

    Raises:
        Misuse: timm is not installed, has no such model, or the model cannot be trained here.
    """
    if spec.name.startswith(TIMM):
        from pipeline.models.baseline import build_baseline

        return build_baseline(spec, num_classes, rng)
    from pipeline.models.efficientnet import build

    return build(spec, num_classes, rng)
