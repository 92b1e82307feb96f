"""A model of timm run without data or weights: what it has, costs, and cannot do.

On the meta device a model of any size takes a second and no memory. What would break a training
at its first step, or make it differ between ranks, is so refused before anything is trained.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.baseline_trunk import KeyedDropPath, make_trunk, own_px
from pipeline.models.table import ModelSpec
from pipeline.spec import Misuse

BATCH = 2
_WRONG = (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError)


class Facts(NamedTuple):
    """What is found out about a trunk.

    `width` is the number of its features, `drop_rates` has one entry for each call of a drop-path
    layer in order, `params` counts its trainable numbers.
    """

    width: int
    drop_rates: tuple[float, ...]
    params: int


def examine(spec: ModelSpec) -> Facts:
    """Run the trunk once at the image size it was made for, and find out what it has.

    Raises:
        Misuse: it draws random numbers by itself, or gives no features (B, width).
    """
    return _examine(spec.name, spec.drop_path)


def baseline_params(spec: ModelSpec, num_classes: int) -> int:
    """Count the trainable numbers, those of a head for `num_classes` included."""
    facts = examine(spec)
    return facts.params + (facts.width + 1) * num_classes


def baseline_macs(spec: ModelSpec, px: int, num_classes: int) -> int:
    """Count the multiply-adds of one image: convolutions, matrix products, attention.

    Raises:
        Misuse: the model cannot take images of `px`.
    """
    return _macs(spec.name, px) + examine(spec).width * num_classes


def check_takes(spec: ModelSpec, field: str, px: int) -> None:
    """Refuse images that the model cannot take, before anything is trained.

    Raises:
        Misuse: names `field`, the size, what the model says and the size that it was made for.
    """
    _run(spec.name, _skeleton(spec.name, spec.drop_path).train(), px, field)


@lru_cache(maxsize=8)
def _examine(name: str, drop_path: float) -> Facts:
    trunk = _skeleton(name, drop_path).train()
    calls: list[tuple[float, int]] = []

    def note(path: nn.Module, branches: tuple[torch.Tensor]) -> None:
        assert isinstance(path, KeyedDropPath)
        calls.append((path.rate, len(branches[0])))

    paths = [layer for layer in trunk.modules() if isinstance(layer, KeyedDropPath)]
    handles = [path.register_forward_pre_hook(note) for path in paths]
    with _Dice() as dice:
        output = _run(name, trunk, own_px(trunk), "model.name")
    for handle in handles:
        handle.remove()
    if dice.thrown:
        raise _unfit(name, f"it draws random numbers by itself ({dice.thrown[0]}); leave it")
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != BATCH:
        raise _unfit(name, "without its head it does not give one row of features for each image")
    if any(batch != BATCH for _, batch in calls):
        raise _unfit(name, "it drops branches of parts of images; set model.drop_path=0")
    params = sum(parameter.numel() for parameter in trunk.parameters())
    return Facts(output.shape[1], tuple(rate for rate, _ in calls), params)


@lru_cache(maxsize=64)
def _macs(name: str, px: int) -> int:
    with FlopCounterMode(display=False) as counter:
        _run(name, _skeleton(name, 0.0).eval(), px, "stages.px")
    return counter.get_total_flops() // (2 * BATCH)  # a multiply-add is two operations


class _Dice(TorchDispatchMode):
    """Notes the operations that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.thrown: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.thrown.append(str(func))
        return func(*args, **(kwargs or {}))


@lru_cache(maxsize=4)
def _skeleton(name: str, drop_path: float) -> nn.Module:
    """Return the trunk without storage; for this file alone, since it is kept."""
    with torch.device("meta"):
        return make_trunk(name, drop_path, 0.1)[0].requires_grad_(False)


def _run(name: str, trunk: nn.Module, px: int, field: str) -> Any:
    """Give the trunk two images of `px`."""
    try:
        with torch.no_grad():
            return trunk(torch.empty(BATCH, 3, px, px, device="meta"))
    except _WRONG as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        right = own_px(trunk)
        raise Misuse(
            f"field '{field}': {name} does not take images of {px} px ({reason}); it was made for "
            f"{right} px: set {field}={right}, or choose another model (model.name)"
        ) from None


def _unfit(name: str, reason: str) -> Misuse:
    return Misuse(f"field 'model.name' is '{name}': {reason}, or choose another model")
