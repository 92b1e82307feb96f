"""Which parameters decay: kernels and the classifier's matrix; never biases or BatchNorm.

A model may spare more by an attribute `no_weight_decay` on a parameter: models of timm do so for
positions and tokens.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn


def param_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that do not.

    The official code excludes names with bias, gamma or beta; those are the tensors with at most
    one dimension. Parameters marked `no_weight_decay` are spared as well. Empty groups are left
    out, and nothing is split where there is no decay.
    """
    parameters = list(named_parameters)
    split = [
        (weight_decay, [(name, p) for name, p in parameters if _decays(p)]),
        (0.0, [(name, p) for name, p in parameters if not _decays(p)]),
    ]
    if weight_decay == 0:
        split = [(0.0, parameters)]
    return [
        {
            "params": [parameter for _, parameter in members],
            "weight_decay": decay,
            "names": [name for name, _ in members],
        }
        for decay, members in split
        if members
    ]


def _decays(parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not getattr(parameter, "no_weight_decay", False)
