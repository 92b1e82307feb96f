"""Losses over soft targets, in fp32, and the targets that each of them takes.

Source: main.py of google/automl, efficientnetv2. Cross entropy takes rows that sum to one, so the
labels of an image share one; the sigmoid losses ask about every class by itself, so each label
counts whole ("sigmoid" there is the mean over classes, "custom" their sum).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.optim.settings import LossSpec

Kind = Literal["softmax", "sigmoid_mean", "sigmoid_sum"]


def soft_targets(
    labels: Tensor, num_classes: int, smoothing: float, kind: Kind = "softmax"
) -> Tensor:
    """Return (B, C) targets for (B, K) labels padded with -1.

    For `softmax` they sum to one: a sample with n labels gives each 1/n (the official 21k recipe),
    then `smoothing` is spread evenly over all classes. For the sigmoid losses each label is 1 and
    `smoothing` draws every class towards a half.
    """
    valid = labels >= 0
    targets = torch.zeros(len(labels), num_classes, device=labels.device)
    targets.scatter_add_(1, labels.clamp(min=0), valid.float())
    targets.clamp_(max=1.0)
    if kind != "softmax":
        return targets * (1 - smoothing) + smoothing / 2 if smoothing else targets
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
