"""Weights lie like the gradients of convolutions; on the CPU no number moves for it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.parallel.layout import lay_out
from pipeline.parallel.settings import ComputeSpec, DdpSpec, DeepspeedSpec, StrategySpec

LAST = torch.channels_last


class Kernels(nn.Module):
    """A full kernel, a depthwise one behind a gate of squeeze-and-excitation, a 1x1 one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.full = nn.Conv2d(4, 96, 3, padding=1, bias=False)
        self.depth = nn.Conv2d(96, 96, 3, groups=96, bias=False)
        self.reduce = nn.Conv2d(96, 6, 1)
        self.expand = nn.Conv2d(6, 96, 1)
        self.point = nn.Conv2d(96, 8, 1, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.depth(self.full(images))
        gate = self.expand(F.silu(self.reduce(maps.mean((2, 3), keepdim=True))))
        return self.point(maps * torch.sigmoid(gate))


def strides(model: nn.Module) -> list[tuple[int, ...]]:
    return [parameter.stride() for parameter in model.parameters()]


def test_on_the_cpu_gradients_arrive_in_the_layout_of_their_weights() -> None:
    model = Kernels()
    lay_out(model, DdpSpec(), ComputeSpec())
    model(torch.randn(16, 4, 9, 9).to(memory_format=LAST)).square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        assert weight.grad.stride() == weight.stride(), name


def test_on_the_cpu_no_number_moves_in_memory() -> None:
    before, after = Kernels(), Kernels()
    lay_out(after, DdpSpec(), ComputeSpec())
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert new.is_contiguous()
        assert torch.equal(old.view(-1), new.view(-1))
    images = torch.randn(16, 4, 9, 9).to(memory_format=LAST)
    for model in (before, after):
        model(images).square().sum().backward()
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert old.grad is not None and new.grad is not None
        assert torch.equal(old.grad, new.grad)


@pytest.mark.parametrize(
    ("spec", "compute"),
    [
        (DeepspeedSpec(kind="deepspeed"), ComputeSpec()),
        (DdpSpec(), ComputeSpec(channels_last=False)),
    ],
)
def test_others_are_left_as_they_are(spec: StrategySpec, compute: ComputeSpec) -> None:
    model = Kernels()
    lay_out(model, spec, compute)
    assert strides(model) == strides(Kernels())


@pytest.mark.gpu
def test_on_a_gpu_all_kernels_are_channels_last() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    model = Kernels().cuda()
    values = [parameter.clone() for parameter in model.parameters()]
    lay_out(model, DdpSpec(), ComputeSpec())
    for old, new in zip(values, model.parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.ndim != 4 or new.is_contiguous(memory_format=LAST)
    images = torch.randn(2, 4, 9, 9, device="cuda").to(memory_format=LAST)
    assert torch.isfinite(model(images)).all()
