"""BatchNorm whose running statistics change once per optimizer step, not once per forward pass.

A micro-batch is normalised with its own statistics, as always (or with those of a group of them:
`share_statistics`); these are added up, and `commit_statistics` moves the running ones towards the
mean over all of them on all ranks. So the number of ranks and the order of their work leave no
trace in the buffers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.models.shared_norm import Exchange, SharedNorm, shared_norm


class StepBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over (B, C, H, W) that collects batch statistics until they are committed.

    `mean_sum` and `var_sum` (unbiased variance) are (C,) in fp32 and not part of the state dict;
    there is no `num_batches_tracked`, since it would only count steps. With `shared` set, the
    statistics of a forward pass are those of a group of ranks.
    """

    running_mean: torch.Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    running_var: torch.Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    mean_sum: torch.Tensor
    var_sum: torch.Tensor
    shared: SharedNorm | None = None

    def __init__(self, num_features: int, eps: float = 1e-3, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.register_buffer("num_batches_tracked", None)
        self.register_buffer("mean_sum", torch.zeros_like(self.running_mean), persistent=False)
        self.register_buffer("var_sum", torch.zeros_like(self.running_var), persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if self.shared is not None:
            output, mean, var = self.shared(input, self.weight, self.bias, self.eps)
            self.mean_sum.add_(mean)
            self.var_sum.add_(var)
            return output
        # With momentum 1 the buffers leave the kernel as this micro-batch's own statistics.
        mean, var = torch.zeros_like(self.mean_sum), torch.zeros_like(self.var_sum)
        output = F.batch_norm(
            input, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps
        )
        self.mean_sum.add_(mean)
        self.var_sum.add_(var)
        return output

    def reset_running_stats(self) -> None:
        """Set the running statistics to mean 0, variance 1."""
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # nn.BatchNorm2d's own version would add `num_batches_tracked` to plain dictionaries.
        nn.Module._load_from_state_dict(self, *args, **kwargs)


def share_statistics(model: nn.Module, exchange: Exchange | None) -> None:
    """Normalise with the statistics of all ranks in `exchange` from now on; None: of each alone."""
    shared = None if exchange is None else shared_norm(exchange)
    for layer in step_batch_norms(model):
        layer.shared = shared


@contextmanager
def each_alone(model: nn.Module) -> Iterator[None]:
    """Normalise without the other ranks for a while, so that none waits for one that fails."""
    layers = step_batch_norms(model)
    before = [layer.shared for layer in layers]
    share_statistics(model, None)
    try:
        yield
    finally:
        for layer, shared in zip(layers, before, strict=True):
            layer.shared = shared


def commit_statistics(
    model: nn.Module,
    num_micro_batches_here: int,
    all_reduce_sum: Callable[[torch.Tensor], None] | None,
    total_micro_batches: int,
) -> None:
    """Move the running statistics once, by the mean over all micro-batches of the step.

    What one forward pass takes together counts as one micro-batch here, on every rank.
    `all_reduce_sum` adds one flat tensor up over the ranks in place (None: this rank did all the
    work). Afterwards the collected sums are zero.
    """
    alone = all_reduce_sum is None
    assert 0 <= num_micro_batches_here <= total_micro_batches and total_micro_batches > 0
    assert not alone or num_micro_batches_here == total_micro_batches, (
        f"{num_micro_batches_here} of {total_micro_batches} micro-batches are here and nothing "
        "adds up the rest"
    )
    layers = step_batch_norms(model)
    if not layers:
        return
    sums = _sums(layers)
    flat = torch.cat(sums)
    if all_reduce_sum is not None:
        all_reduce_sum(flat)
    means = flat.div_(total_micro_batches).split([tensor.numel() for tensor in sums])
    running = [t for layer in layers for t in (layer.running_mean, layer.running_var)]
    momentum = layers[0].momentum
    assert momentum is not None and all(layer.momentum == momentum for layer in layers)
    torch._foreach_mul_(running, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(running, means, alpha=momentum)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_zero_(sums)  # pyright: ignore[reportPrivateImportUsage]


def discard_statistics(model: nn.Module) -> None:
    """Forget what was collected since the last commit (after a rehearsal or a skipped step)."""
    if sums := _sums(step_batch_norms(model)):
        torch._foreach_zero_(sums)  # pyright: ignore[reportPrivateImportUsage]


def step_batch_norms(model: nn.Module) -> list[StepBatchNorm2d]:
    """Return the layers in module order, which is the order of the flat tensor."""
    return [layer for layer in model.modules() if isinstance(layer, StepBatchNorm2d)]


def _sums(layers: list[StepBatchNorm2d]) -> list[torch.Tensor]:
    return [tensor for layer in layers for tensor in (layer.mean_sum, layer.var_sum)]
