"""BatchNorm over a group of ranks, forward and backward, on any device and back end.

PyTorch's SyncBatchNorm refuses the CPU and adds in whatever order the ranks come. Here the ranks'
own statistics are collected in their order and put together alike on every rank, so all of them
normalise with the same bits, and with more than one rank nothing depends on how a sum was made.
"""

from typing import Any, Protocol, cast

import torch


class Exchange(Protocol):
    """A group of ranks that share statistics: who we are in it, and how tensors are added up."""

    @property
    def index(self) -> int:
        """Our place in the group."""
        ...

    @property
    def size(self) -> int:
        """The number of ranks in the group."""
        ...

    def sum(self, tensor: torch.Tensor) -> None:
        """Add `tensor` up over the group, in place."""
        ...


class SharedNorm(Protocol):
    """Normalises maps (B, C, ...) with the statistics of a group of ranks."""

    def __call__(
        self, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the output in the type of `maps`, the group's mean and unbiased variance (C,).

        All ranks must bring equally many values. A collective, forward and backward.

        Raises:
            ValueError: there is a single value per channel in the whole group.
        """
        ...


def shared_norm(exchange: Exchange) -> SharedNorm:
    """Return the normalisation over the ranks of `exchange`; compilers leave it as it is."""

    def normalise(
        maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if maps.numel() // maps.shape[1] * exchange.size < 2:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got {tuple(maps.shape)}"
            )
        return _Normalise.apply(maps, weight, bias, eps, exchange)

    return cast(SharedNorm, torch.compiler.disable(normalise))


class _Normalise(torch.autograd.Function):
    """The gradient of a rank's maps holds what they did to the other ranks' outputs."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        exchange: Exchange,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values = _precise(maps)
        own = torch.stack(torch.var_mean(values, _reduced(maps), correction=0))
        variances, means = _collect(own, exchange).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        inverse = torch.rsqrt(var + eps)
        scale = inverse * weight
        output = values * _over(scale, maps) + _over(bias - mean * scale, maps)
        ctx.save_for_backward(maps, weight, mean, inverse)
        ctx.exchange = exchange
        count = maps.numel() // maps.shape[1] * exchange.size
        unbiased = var * (count / (count - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return output.to(maps.dtype), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        maps, weight, mean, inverse = ctx.saved_tensors
        grad = _precise(grads[0])
        normal = (_precise(maps) - _over(mean, maps)) * _over(inverse, maps)
        own = torch.stack([grad.sum(_reduced(maps)), (grad * normal).sum(_reduced(maps))])
        count = maps.numel() // maps.shape[1] * ctx.exchange.size
        of_mean, of_scale = _collect(own, ctx.exchange).sum(0) / count
        grad_maps = grad - _over(of_mean, maps) - normal * _over(of_scale, maps)
        grad_maps = (grad_maps * _over(inverse * weight, maps)).to(maps.dtype)
        return grad_maps, own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


def _collect(own: torch.Tensor, exchange: Exchange) -> torch.Tensor:
    """Return (ranks, ...) with each rank's tensor in its row; adding zeros loses no bit."""
    rows = own.new_zeros((exchange.size, *own.shape))
    rows[exchange.index] = own
    exchange.sum(rows)
    return rows


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _reduced(maps: torch.Tensor) -> list[int]:
    return [dim for dim in range(maps.ndim) if dim != 1]


def _over(channels: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return channels.view(-1, *[1] * (maps.ndim - 2))
