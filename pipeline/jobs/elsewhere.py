"""Weights from elsewhere: official TensorFlow checkpoints, and the files of timm and torchvision.

    tf:PREFIX, tf:FOLDER                    an official TensorFlow checkpoint
    timm:FILE, torchvision:FILE             safetensors, .pth, or a folder of the Hugging Face hub

They do not say which classes their head knows, and a width is no list: the name of a published
label space behind an @ does (`tf:efficientnetv2-s/model@imagenet_1k`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pipeline.data.labels import PUBLISHED, LabelSpace, published
from pipeline.models.efficientnet import EfficientNet
from pipeline.models.port import CLASSIFIER, Library, num_classes, ported_spec, translate
from pipeline.models.port_files import find_file, model_names, read_state
from pipeline.models.port_tf import BN_EPS, PADDING, find_variables, official_spec, translate_tf
from pipeline.models.table import ModelSpec
from pipeline.models.tf_bundle import open_bundle
from pipeline.spec import Misuse

KINDS = ("tf", "timm", "torchvision")
_Found = tuple[ModelSpec, Mapping[str, Tensor], int]
"""What the weights need, the weights, and the width of their head."""


class Origin(NamedTuple):
    """A finished model's weights in this project's names; `labels` are None where unknown."""

    name: str
    spec: ModelSpec
    state: Mapping[str, Tensor]
    num_classes: int
    labels: LabelSpace | None


def is_elsewhere(name: str) -> bool:
    """Return whether `name` is of the form of weights from elsewhere."""
    return name.partition(":")[0] in KINDS and ":" in name


def from_elsewhere(name: str, model: ModelSpec) -> Origin:
    """Load weights from elsewhere; `model` is what shall be made of them.

    Raises:
        Misuse: they are not there, or of another kind than `name` says.
        Failure: a file is damaged.
    """
    kind, _, rest = name.partition(":")
    place, at, space = rest.rpartition("@")
    # An @ in the name of a file or folder is none of ours.
    if not at or "/" in space or Path(rest).exists():
        place, space = rest, ""
    labels = published(space) if space else None
    match kind:
        case "tf":
            spec, state, width = _tensorflow(Path(place), model)
        case "timm" if model.is_timm:
            spec, state, width = _baseline(Path(place), model)
        case _:
            spec, state, width = _library(cast(Library, kind), Path(place))
    if labels is not None and len(labels) != width:
        raise Misuse(
            f"field 'init.from' is '{name}': the head there has {width:,} outputs, but label "
            f"space {space} has {len(labels):,} classes; name the label space it was trained on"
            f"{_suggestion(width)}, or none for a new head"
        )
    return Origin(name, spec, state, width, labels)


def _suggestion(width: int) -> str:
    fitting = [name for name, size in PUBLISHED.items() if size == width]
    return f" ({', '.join(fitting)} would fit)" if fitting else ""


def _tensorflow(place: Path, model: ModelSpec) -> _Found:
    found = find_variables(open_bundle(place))
    spec = official_spec(found.root)
    if spec is None and model.is_timm:
        raise Misuse(
            f"field 'model.name' is '{model.name}', but {found.bundle.prefix} holds an "
            f"EfficientNet of TensorFlow ({found.root}); name a model of the table"
        )
    spec = spec or model.model_copy(update={"padding": PADDING, "bn_eps": BN_EPS})
    with torch.device("meta"):
        network = EfficientNet(spec, found.num_classes)
    return spec, translate_tf(found, network), found.num_classes


def _library(library: Library, place: Path) -> _Found:
    file = find_file(place)
    spec = _named_spec(library, file)
    state = read_state(file)
    width = num_classes(state, CLASSIFIER[library], str(file))
    with torch.device("meta"):
        network = EfficientNet(spec, width)
    return spec, translate(state, library, network, str(file)), width


def _baseline(place: Path, model: ModelSpec) -> _Found:
    """Read weights of timm for a model that is timm's own."""
    from pipeline.models.baseline import TimmNetwork, translate_baseline

    file = find_file(place)
    state = read_state(file)
    with torch.device("meta"):
        network = TimmNetwork(model, 1)
        settings = cast(Mapping[str, object], network.trunk.pretrained_cfg)
        width = num_classes(state, str(settings["classifier"]), str(file))
        network.classifier = nn.Linear(network.classifier.in_features, width)
    return model, translate_baseline(state, network, str(file)), width


def _named_spec(library: Library, file: Path) -> ModelSpec:
    """Return the settings that the weights need: names and shapes do not tell padding and eps."""
    reasons: list[str] = []
    for name in model_names(file):
        try:
            return ported_spec(library, name)
        except Misuse as error:
            reasons.append(str(error))
    raise Misuse(
        f"{file}: neither its name nor a config.json of the hub says which model its weights are "
        f"of; rename it to begin with the model's name. {reasons[0]}"
    )
