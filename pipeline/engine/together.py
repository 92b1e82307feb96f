"""Micro-batches that one rank takes through the model at once, because they share statistics.

Each was mixed and noised by itself, so what is in them does not depend on the number of ranks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.models.noise import Noise

Ready = tuple[Tensor, Tensor, Noise]
"""Images, targets and noise of one micro-batch, as the model takes them."""


def joined(parts: Sequence[Ready]) -> Ready:
    """Return `parts` as one batch, in their order."""
    if len(parts) == 1:
        return parts[0]
    images, targets, noises = zip(*parts, strict=True)
    noise = Noise(
        torch.cat([noise.drop_path for noise in noises], dim=1),
        torch.cat([noise.dropout for noise in noises]),
    )
    return torch.cat(images), torch.cat(targets), noise
