"""How weights lie in memory while they are trained: like the gradients that convolutions give.

Where the two differ, every step copies gradients (and DDP warns of it). Sharded strategies lay out
their own.
"""

import torch
from torch import nn

from pipeline.parallel.settings import ComputeSpec, DdpSpec, StrategySpec


def lay_out(model: nn.Module, spec: StrategySpec, compute: ComputeSpec) -> None:
    """Give `model`, on its device, channels-last weights where that saves work, in place.

    On a GPU all kernels of convolutions become channels last, or each pass would turn them. On the
    CPU only those do whose numbers stay where they are (1x1 and depthwise: no more than strides
    change), so all strategies have the same bits there. A convolution with a bias is left alone:
    squeeze-and-excitation has them, over maps of 1x1, where strides alone choose torch's kernel.
    """
    if not compute.channels_last or not isinstance(spec, DdpSpec):
        return
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and (layer.weight.is_cuda or _only_strides(layer)):
            last = torch.empty_like(layer.weight, memory_format=torch.channels_last)
            layer.weight.data = last.copy_(layer.weight.data)


def _only_strides(layer: nn.Conv2d) -> bool:
    """Return whether channels last changes no more than strides, here and in what is computed."""
    return layer.bias is None and layer.weight.is_contiguous(memory_format=torch.channels_last)
