"""EfficientNet and EfficientNetV2 as one module: stem, blocks, head, pooling, classifier."""

import numpy as np
import torch
from torch import nn

from pipeline.models.blocks import ConvNorm, FusedMBConv, MBConv
from pipeline.models.init import initialise
from pipeline.models.layout import lay_out
from pipeline.models.network import Network
from pipeline.models.noise import Noise, drop_path_rates
from pipeline.models.table import ModelSpec


class EfficientNet(Network):
    """The network that `spec` names, with `num_classes` outputs.

    Constructed with PyTorch's own initial weights; `build` gives the official ones.
    """

    def __init__(self, spec: ModelSpec, num_classes: int) -> None:
        super().__init__()
        layout = lay_out(spec.row)
        self.spec = spec
        self.layout = layout
        self.stem = ConvNorm(3, layout.stem, spec, kernel=3, stride=layout.stem_stride)
        self.blocks = nn.ModuleList(
            (FusedMBConv if block.op == "fused" else MBConv)(block, spec) for block in layout.blocks
        )
        self.head = ConvNorm(layout.blocks[-1].outputs, layout.head, spec)
        self.classifier = nn.Linear(layout.head, num_classes)
        rates = drop_path_rates(len(layout.blocks), spec.drop_path)
        # Blocks without a skip are never dropped.
        self.drop_rates = tuple(
            rate if block.has_skip else 0.0
            for rate, block in zip(rates, layout.blocks, strict=True)
        )

    def features(self, images: torch.Tensor, noise: Noise | None = None) -> torch.Tensor:
        """Return the pooled features (B, head width), the means of the head's maps."""
        maps = self.stem(images)
        for index, block in enumerate(self.blocks):
            keep = noise.drop_path[index] if noise is not None and self.training else None
            maps = block(maps, keep)
        return self.head(maps).mean((2, 3))


def build(spec: ModelSpec, num_classes: int, rng: np.random.Generator | None) -> EfficientNet:
    """Build the model on the CPU in fp32 with official first weights drawn from `rng`.

    Without `rng` the weights are zeros, for states that are loaded next. PyTorch's global random
    state is neither used nor changed.
    """
    with torch.device("meta"):
        model = EfficientNet(spec, num_classes)
    model.to_empty(device="cpu")
    initialise(model, rng)
    return model
