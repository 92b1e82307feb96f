"""Weight decay: kernels and the classifier's matrix, never biases or BatchNorm."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.optim._param_groups import param_groups_weight_decay
from torch import nn

from pipeline.models.baseline import build_baseline
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


# Positions and tokens; a table of biases for each window; a pattern; nothing said; biases of rows.
@pytest.mark.parametrize(
    "name", ["test_vit", "swin_tiny_patch4_window7_224", "xcit_nano_12_p16_224", "test_resnet",
             "levit_128s"]
)  # fmt: skip
def test_a_model_of_timm_decays_where_timm_s_own_optimizer_would(name: str) -> None:
    ours = build_baseline(ModelSpec(name=f"timm/{name}"), 7, None)
    decayed, rest = param_groups(ours.named_parameters(), 0.05)
    theirs: Any = timm.create_model(name, num_classes=0)
    spared = set(theirs.no_weight_decay()) if hasattr(theirs, "no_weight_decay") else set()
    names = {id(parameter): f"trunk.{key}" for key, parameter in theirs.named_parameters()}
    for group in param_groups_weight_decay(theirs, 0.05, no_weight_decay_list=spared):
        here = decayed if group["weight_decay"] else rest
        head = {"classifier.weight"} if group["weight_decay"] else {"classifier.bias"}
        assert set(here["names"]) == {names[id(p)] for p in group["params"]} | head


def test_the_mark_stays_when_a_model_changes_its_numbers_or_layout() -> None:
    model = build_baseline(ModelSpec(name="timm/test_vit"), 7, None)
    before = param_groups(model.named_parameters(), 0.05)[1]["names"]
    model.to(memory_format=torch.channels_last).bfloat16()
    assert param_groups(model.named_parameters(), 0.05)[1]["names"] == before
    assert {"trunk.cls_token", "trunk.pos_embed"} <= set(before)


def test_nothing_is_split_where_nothing_decays(module: Callable[[int], nn.Module]) -> None:
    (group,) = param_groups(module(0).named_parameters(), 0.0)
    assert group["weight_decay"] == 0.0
    assert len(group["params"]) == 6


def test_empty_groups_are_left_out() -> None:
    (group,) = param_groups(nn.BatchNorm1d(3).named_parameters(), 0.1)
    assert group["weight_decay"] == 0.0
    assert param_groups([], 0.1) == []
