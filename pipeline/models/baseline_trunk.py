"""timm's models with our layers in them: the one file that imports timm.

The head is left out, BatchNorm collects its statistics our way, and drop-path takes masks that are
drawn outside. Everything else is timm's own.
"""

import difflib
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pipeline.models.batchnorm import StepBatchNorm2d
from pipeline.models.table import TIMM
from pipeline.spec import Misuse

OPTIONAL = ("dynamic_img_size", "drop_path_rate", "drop_rate")
"""What is asked of every model's constructor, and left out where it knows no such thing."""


class Masks:
    """What the drop-path layers of one trunk take their rows from, in the order they are called."""

    def __init__(self) -> None:
        self.rows: torch.Tensor | None = None
        self.taken = 0


class KeyedDropPath(nn.Module):
    """timm's DropPath with masks from outside; a layer that is called twice takes two rows."""

    def __init__(self, rate: float, masks: Masks) -> None:
        super().__init__()
        self.rate = rate
        self._masks = masks

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        masks = self._masks
        if masks.rows is None or not self.training:
            return branch
        keep = masks.rows[masks.taken]
        masks.taken += 1
        return branch * keep.to(branch.dtype).view(-1, *[1] * (branch.ndim - 1))


class StepNormAct(StepBatchNorm2d):
    """timm's BatchNorm with an activation behind it, its statistics kept our way."""

    def __init__(self, like: Any) -> None:
        super().__init__(like.num_features, eps=like.eps)
        self.drop, self.act = like.drop, like.act

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(input)))


def make_trunk(name: str, drop_path: float, bn_momentum: float) -> tuple[nn.Module, Masks]:
    """Make timm's model `name` (`timm/resnet50`) for features, and what its masks are put into.

    Weights are timm's first ones, from torch's global generator. Dropout within the trunk, which a
    few transformers have, is off: the recipe's stands before the classifier.

    Raises:
        Misuse: timm is not installed or has no such model; the nearest names are given.
    """
    trunk = _create(name.removeprefix(TIMM), drop_path)
    masks = Masks()
    _adapt(trunk, masks, bn_momentum)
    _spare(trunk)
    return trunk, masks


def head_name(trunk: nn.Module) -> str:
    """Return what timm calls the classifier in a state dict, for example `head.fc`."""
    return str(_about(trunk).get("classifier"))


def own_px(trunk: nn.Module) -> int:
    """Return the side of the images that timm's model was made for."""
    return int(_about(trunk)["input_size"][-1])


def _create(name: str, drop_path: float) -> nn.Module:
    timm = _library()
    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), 5, 0.5)
        raise Misuse(
            f"field 'model.name' is '{TIMM}{name}': timm {timm.__version__} has no such model; "
            f"the nearest are {', '.join(TIMM + other for other in near) or 'none'}"
        )
    settings: dict[str, Any] = dict(zip(OPTIONAL, (True, drop_path, 0.0), strict=True))
    while True:
        try:
            return timm.create_model(plain, pretrained=False, num_classes=0, **settings)
        except TypeError as error:
            unknown = [key for key in settings if f"'{key}'" in str(error)]
            if not unknown:
                raise
            del settings[unknown[0]]


def _library() -> Any:
    try:
        import timm
    except ImportError:
        raise Misuse(
            "field 'model.name': models of timm need the library, which is an extra: "
            "pip install 'effnet-cluster[timm]'"
        ) from None
    return timm


def _adapt(module: nn.Module, masks: Masks, bn_momentum: float) -> None:
    """Replace drop-path and BatchNorm below `module`, and switch inner dropout off."""
    from timm.layers import DropPath

    for name, layer in module.named_children():
        if isinstance(layer, DropPath):
            rate = float(layer.drop_prob)
            setattr(module, name, KeyedDropPath(rate, masks) if rate > 0 else nn.Identity())
        elif isinstance(layer, _BatchNorm):
            setattr(module, name, _step_norm(layer, bn_momentum))
        elif isinstance(layer, _DropoutNd):
            layer.p = 0.0
        else:
            _adapt(layer, masks, bn_momentum)


def _spare(trunk: nn.Module) -> None:
    """Mark what timm's model itself keeps from weight decay: positions, tokens, bias tables."""
    named: Any = getattr(trunk, "no_weight_decay", None)
    patterns = () if named is None else tuple(named())
    for name, parameter in trunk.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            setattr(parameter, "no_weight_decay", True)  # noqa: B010 - no field of a Parameter


def _step_norm(layer: _BatchNorm, bn_momentum: float) -> StepBatchNorm2d:
    """Return our BatchNorm with `layer`'s parameters, eps and, where it has one, activation."""
    has_act = hasattr(layer, "act")
    ours = StepNormAct(layer) if has_act else StepBatchNorm2d(layer.num_features, eps=layer.eps)
    ours.momentum = bn_momentum
    ours.weight, ours.bias = layer.weight, layer.bias
    return ours


def _about(trunk: nn.Module) -> dict[str, Any]:
    about = trunk.pretrained_cfg
    assert isinstance(about, dict)
    return about
