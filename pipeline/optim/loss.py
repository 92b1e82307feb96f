"""Losses over soft targets, in fp32."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.optim.settings import LossSpec


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return (B, C) targets that sum to one for (B, K) labels padded with -1.

    A sample with n labels gives each 1/n (the official 21k recipe); then `smoothing` is spread
    evenly over all classes.
    """
    valid = labels >= 0
    targets = torch.zeros(len(labels), num_classes, device=labels.device)
    targets.scatter_add_(1, labels.clamp(min=0), valid.float())
    targets.clamp_(max=1.0)
    targets /= targets.sum(1, keepdim=True)
    return targets * (1 - smoothing) + smoothing / num_classes if smoothing else targets


def loss_fn(spec: LossSpec) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function from logits and targets, both (B, C), to the mean loss of the batch."""
    return {"softmax": _softmax, "sigmoid_mean": _sigmoid_mean, "sigmoid_sum": _sigmoid_sum}[
        spec.kind
    ]


def _softmax(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * F.log_softmax(logits.float(), 1)).sum(1).mean()


def _sigmoid_mean(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), targets)


def _sigmoid_sum(logits: Tensor, targets: Tensor) -> Tensor:
    sums = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").sum(1)
    return sums.mean()
