"""Weights of torchvision and timm under our names, refused unless every tensor finds its place.

Both libraries hold the same arithmetic in other containers; the translation is spelled out part
by part below. What is no tensor (padding, BatchNorm eps) comes with `ported_spec`.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch

from pipeline.models.efficientnet import EfficientNet
from pipeline.models.layout import Block
from pipeline.models.table import ModelSpec
from pipeline.spec import Misuse

Library = Literal["torchvision", "timm"]
Shape = tuple[int, ...]
CLASSIFIER: dict[Library, str] = {"torchvision": "classifier.1", "timm": "classifier"}
"""What the libraries call the head of these models."""
_NORM = ("weight", "bias", "running_mean", "running_var")
# timm's (convolution, norm) for our expand, depthwise and project, by block and expansion.
_TIMM: dict[tuple[str, bool], dict[str, tuple[str, str]]] = {
    ("fused", False): {"expand": ("conv", "bn1")},
    ("fused", True): {"expand": ("conv_exp", "bn1"), "project": ("conv_pwl", "bn2")},
    ("mb", False): {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")},
    ("mb", True): {
        "expand": ("conv_pw", "bn1"),
        "depthwise": ("conv_dw", "bn2"),
        "project": ("conv_pwl", "bn3"),
    },
}


def ported_spec(library: Library, name: str) -> ModelSpec:
    """Return the settings under which our model computes what `library`'s model `name` computes.

    A timm tag (`tf_efficientnetv2_s.in21k`) is accepted and changes nothing.

    Raises:
        Misuse: the model has no counterpart in the table.
    """
    known = _counterparts(library)
    if name.partition(".")[0] not in known:
        raise Misuse(f"{library} model '{name}': no counterpart; there are: {', '.join(known)}")
    return known[name.partition(".")[0]]


def translate(
    state: Mapping[str, torch.Tensor], library: Library, model: EfficientNet, source: str
) -> dict[str, torch.Tensor]:
    """Rename `library`'s state dict for `model.load_state_dict`; tensors are shared, not copied.

    `source` (a file or model name) is named in errors. Step counters of BatchNorm are dropped.

    Raises:
        Misuse: tensors are missing, left over or of another shape; each is named.
    """
    wanted = model.state_dict()
    theirs_by_ours = dict(_names(library, model))
    assert theirs_by_ours.keys() == wanted.keys()
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.endswith(".num_batches_tracked")
    }
    expected = {theirs: tuple(wanted[ours].shape) for ours, theirs in theirs_by_ours.items()}
    refuse_misfits(shapes, expected, library, model, source)
    return {ours: state[theirs] for ours, theirs in theirs_by_ours.items()}


def num_classes(state: Mapping[str, torch.Tensor], classifier: str, source: str) -> int:
    """Return how many outputs the head named `classifier` in a state dict has.

    Raises:
        Misuse: there is no such head.
    """
    bias = state.get(f"{classifier}.bias")
    if bias is None or bias.ndim != 1:
        raise Misuse(
            f"{source}: holds no '{classifier}.bias', so it is not the whole model, or another "
            "one; name the file that the library itself loads"
        )
    return len(bias)


def refuse_misfits(
    found: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    origin: str,
    model: EfficientNet,
    source: str,
) -> None:
    """Refuse tensors that are missing, left over or of another shape than `expected`.

    Names and shapes are those of `origin`, a library or TensorFlow.

    Raises:
        Misuse: names the first five of them.
    """
    problems: list[str] = []
    for name, shape in expected.items():
        if name not in found:
            problems.append(f"'{name}' is missing")
        elif found[name] != shape:
            problems.append(f"'{name}' has shape {found[name]}, expected {shape}")
    problems += [f"'{name}' is left over" for name in sorted(found.keys() - expected.keys())]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise Misuse(
            f"{source}: not the {origin} weights of '{model.spec.name}' with "
            f"{model.classifier.out_features} classes: {'; '.join(problems[:5])}{more}; "
            "choose the model and the number of classes that the weights were made for"
        )


def _counterparts(library: Library) -> dict[str, ModelSpec]:
    """List every model that can be ported, with the padding and eps that its library uses."""
    v1 = [f"b{index}" for index in range(8)]
    if library == "torchvision":
        eps = dict.fromkeys(v1[:5], 1e-5) | dict.fromkeys(v1[5:], 1e-3)
        specs = {f"efficientnet_{b}": ModelSpec(name=f"v1_{b}", bn_eps=eps[b]) for b in v1}
        return specs | {f"efficientnet_v2_{size}": ModelSpec(name=f"v2_{size}") for size in "sml"}
    large = ("s", "m", "l", "xl")
    ours = {f"efficientnet_{b}": f"v1_{b}" for b in v1}
    ours |= {f"efficientnetv2_{size}": f"v2_{size}" for size in large}
    specs = {name: ModelSpec(name=row, bn_eps=1e-5) for name, row in ours.items()}
    ours |= {f"efficientnetv2_{b}": f"v2_{b}" for b in v1[:4]}
    return specs | {f"tf_{name}": ModelSpec(name=row, padding="same") for name, row in ours.items()}


def _names(library: Library, model: EfficientNet) -> Iterator[tuple[str, str]]:
    """Yield (our name, their name) of every tensor."""
    blocks = model.layout.blocks
    if library == "torchvision":
        last = blocks[-1].stage + 2
        ends = {"stem": ("features.0.0", "features.0.1")}
        ends["head"] = (f"features.{last}.0", f"features.{last}.1")
        block_parts = _torchvision_parts
    else:
        ends = {"stem": ("conv_stem", "bn1"), "head": ("conv_head", "bn2")}
        block_parts = _timm_parts
    for part, theirs in ends.items():
        yield from _conv_norm(part, theirs)
    for index, block in enumerate(blocks):
        for part, theirs in block_parts(block).items():
            if part.startswith("se."):
                yield from _with_bias(f"blocks.{index}.{part}", theirs[0])
            else:
                yield from _conv_norm(f"blocks.{index}.{part}", theirs)
    yield from _with_bias("classifier", CLASSIFIER[library])


def _torchvision_parts(block: Block) -> dict[str, tuple[str, str]]:
    """Parts stand in one numbered list, so an absent one moves those behind it."""
    wide = block.expand != 1
    if block.op == "fused":
        order = ["expand", "project"] if wide else ["expand"]
    else:
        order = [*(["expand"] if wide else []), "depthwise", "se", "project"]
    prefix = f"features.{block.stage + 1}.{block.place}.block"
    parts = {part: (f"{prefix}.{i}.0", f"{prefix}.{i}.1") for i, part in enumerate(order)}
    if "se" in parts:
        del parts["se"]
        squeeze = f"{prefix}.{order.index('se')}"
        parts |= {"se.reduce": (f"{squeeze}.fc1", ""), "se.expand": (f"{squeeze}.fc2", "")}
    return parts


def _timm_parts(block: Block) -> dict[str, tuple[str, str]]:
    prefix = f"blocks.{block.stage}.{block.place}"
    named = _TIMM[block.op, block.expand != 1]
    parts = {part: (f"{prefix}.{conv}", f"{prefix}.{norm}") for part, (conv, norm) in named.items()}
    if block.squeezed:
        squeeze = f"{prefix}.se.conv"
        parts |= {"se.reduce": (f"{squeeze}_reduce", ""), "se.expand": (f"{squeeze}_expand", "")}
    return parts


def _conv_norm(ours: str, theirs: tuple[str, str]) -> Iterator[tuple[str, str]]:
    conv, norm = theirs
    yield f"{ours}.conv.weight", f"{conv}.weight"
    for name in _NORM:
        yield f"{ours}.norm.{name}", f"{norm}.{name}"


def _with_bias(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.weight", f"{theirs}.weight"
    yield f"{ours}.bias", f"{theirs}.bias"
