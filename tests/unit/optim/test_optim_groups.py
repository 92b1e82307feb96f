"""Weight decay: kernels and the classifier's matrix, never biases or BatchNorm."""

from collections.abc import Callable

import numpy as np
import pytest
from torch import nn

from pipeline.models.efficientnet import build
from pipeline.models.table import ModelSpec
from pipeline.optim.groups import param_groups


def test_biases_and_batch_norm_do_not_decay(module: Callable[[int], nn.Module]) -> None:
    decayed, rest = param_groups(module(0).named_parameters(), 1e-5)
    assert (decayed["weight_decay"], decayed["names"]) == (1e-5, ["0.weight", "3.weight"])
    assert (rest["weight_decay"], rest["names"]) == (
        0.0,
        ["0.bias", "1.weight", "1.bias", "3.bias"],
    )


@pytest.mark.parametrize("name", ["tiny", "v1_b0"])
def test_a_models_parameters_are_all_in_exactly_one_group(name: str) -> None:
    model = build(ModelSpec(name=name), 10, np.random.default_rng(0))
    groups = param_groups(model.named_parameters(), 1e-5)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    for group in groups:
        assert [id(p) for p in group["params"]] == [
            id(dict(model.named_parameters())[name]) for name in group["names"]
        ]
    norms = {f"{name}.{kind}" for name, layer in model.named_modules()
             if isinstance(layer, nn.BatchNorm2d) for kind in ("weight", "bias")}  # fmt: skip
    biases = {name for name in names if name.endswith("bias")}
    assert norms
    assert set(groups[1]["names"]) == norms | biases


def test_depthwise_kernels_decay() -> None:
    depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
    assert param_groups(depthwise.named_parameters(), 0.1)[0]["names"] == ["weight"]


def test_nothing_is_split_where_nothing_decays(module: Callable[[int], nn.Module]) -> None:
    (group,) = param_groups(module(0).named_parameters(), 0.0)
    assert group["weight_decay"] == 0.0
    assert len(group["params"]) == 6


def test_empty_groups_are_left_out() -> None:
    (group,) = param_groups(nn.BatchNorm1d(3).named_parameters(), 0.1)
    assert group["weight_decay"] == 0.0
    assert param_groups([], 0.1) == []
