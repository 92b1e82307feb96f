"""The parts of both families: convolution with norm, squeeze-and-excitation, the two blocks."""

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.models.batchnorm import StepBatchNorm2d
from pipeline.models.layout import Block
from pipeline.models.table import ModelSpec


class SameConv2d(nn.Conv2d):
    """A convolution padded like TensorFlow's SAME: the odd pixel goes to the bottom and right.

    What is missing depends on the size of the input, so it is worked out at each call: 224 px
    with kernel 3 and stride 2 needs (0, 1), 171 px needs (1, 1).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        height, width = input.shape[-2:]
        top, bottom = self._missing(height)
        left, right = self._missing(width)
        return super().forward(F.pad(input, (left, right, top, bottom)))

    def _missing(self, px: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-px // stride) - 1) * stride + kernel - px, 0)
        return total // 2, total - total // 2


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, and SiLU where `act` is set, over (B, C, H, W)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        spec: ModelSpec,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        # With stride 1 and an odd kernel both paddings are the same.
        same = spec.padding == "same" and stride > 1
        self.conv = (SameConv2d if same else nn.Conv2d)(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=0 if same else kernel // 2,
            groups=groups,
            bias=False,
        )
        self.norm = StepBatchNorm2d(outputs, eps=spec.bn_eps, momentum=spec.bn_momentum)
        self.act = act

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = self.norm(self.conv(images))
        return F.silu(images) if self.act else images


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all channels."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean((2, 3), keepdim=True)
        return images * torch.sigmoid(self.expand(F.silu(self.reduce(means))))


class MBConv(nn.Module):
    """Expand, depthwise convolution, squeeze-and-excitation, project; skip where shapes allow."""

    def __init__(self, block: Block, spec: ModelSpec) -> None:
        super().__init__()
        hidden = block.hidden
        self.expand = ConvNorm(block.inputs, hidden, spec) if block.expand != 1 else None
        self.depthwise = ConvNorm(hidden, hidden, spec, block.kernel, block.stride, groups=hidden)
        self.se = SqueezeExcite(hidden, block.squeezed) if block.squeezed else None
        self.project = ConvNorm(hidden, block.outputs, spec, act=False)
        self.has_skip = block.has_skip

    def forward(self, images: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        branch = images if self.expand is None else self.expand(images)
        branch = self.depthwise(branch)
        branch = branch if self.se is None else self.se(branch)
        return _join(images, self.project(branch), keep, self.has_skip)


class FusedMBConv(nn.Module):
    """One full convolution instead of expand and depthwise; without expansion nothing else."""

    def __init__(self, block: Block, spec: ModelSpec) -> None:
        super().__init__()
        assert block.squeezed == 0, "Fused-MBConv has no squeeze-and-excitation"
        wide = block.expand != 1
        self.expand = ConvNorm(
            block.inputs, block.hidden if wide else block.outputs, spec, block.kernel, block.stride
        )
        self.project = ConvNorm(block.hidden, block.outputs, spec, act=False) if wide else None
        self.has_skip = block.has_skip

    def forward(self, images: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        branch = self.expand(images)
        branch = branch if self.project is None else self.project(branch)
        return _join(images, branch, keep, self.has_skip)


def _join(
    images: torch.Tensor, branch: torch.Tensor, keep: torch.Tensor | None, has_skip: bool
) -> torch.Tensor:
    if not has_skip:
        return branch
    if keep is None:
        return images + branch
    return images + branch * keep.to(branch.dtype).view(-1, 1, 1, 1)
