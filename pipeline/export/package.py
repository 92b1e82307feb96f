"""The folder that is registered: a model with all that is needed to use it, and nothing to run.

    model.safetensors   the averaged weights with their BatchNorm statistics
    config.json         the row of the model table, how it is built, the number of classes
    labels.json         class names in index order
    preprocess.json     how an image becomes the input
    facts.json          where it comes from: data, recipe, commit, scores
    MLmodel             what MLflow shows: the signature
    manifest.sha256     the seal over all of them

The same weights, settings and facts give the same bytes, hence the same digest.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor

from pipeline.data.labels import LabelSpace
from pipeline.data.preprocess import PreprocessSpec
from pipeline.engine.inputs import Inputs
from pipeline.export.weights import BrokenPackage, pack, unpack
from pipeline.models.network import Network, build_network
from pipeline.models.table import ModelSpec
from pipeline.run.files import sync_folder
from pipeline.spec import Misuse, Spec
from pipeline.tracking.digests import Altered, read_sealed, seal

WEIGHTS, CONFIG, LABELS = "model.safetensors", "config.json", "labels.json"
PREPROCESS, FACTS, SIGNATURE = "preprocess.json", "facts.json", "MLmodel"
MAX_JSON_BYTES = 32 * 2**20
AnySpec = TypeVar("AnySpec", bound=Spec)


class PackageConfig(Spec):
    """The content of config.json."""

    format: int = 1
    model: ModelSpec
    num_classes: int


@dataclass(frozen=True)
class Package:
    """A finished model, in evaluation mode on the CPU; `digest` names its content."""

    spec: ModelSpec
    model: Network
    labels: LabelSpace
    preprocess: PreprocessSpec
    facts: Mapping[str, Any]
    digest: str

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of uint8 images (B, px, px, 3), on the model's device."""
        device = next(self.model.parameters()).device
        inputs = Inputs(self.preprocess, len(self.labels), 0.0, 0, device, channels_last=True)
        return self.model(inputs.images(images)).float()


def write_package(
    folder: Path,
    model_spec: ModelSpec,
    state: Mapping[str, Tensor],
    labels: LabelSpace,
    preprocess: PreprocessSpec,
    facts: Mapping[str, Any],
) -> Path:
    """Write and seal the package; `folder` is replaced as a whole or not at all.

    `state` is the state dict of the weights to use (the averaged ones, buffers included); `facts`
    must be JSON.

    Raises:
        ValueError: `state` does not fit the model or the number of labels.
    """
    _check_state(state, build_network(model_spec, len(labels), None).state_dict())
    config = PackageConfig(model=model_spec, num_classes=len(labels))
    contents = {
        WEIGHTS: pack(state),
        CONFIG: _json(config.model_dump(mode="json")),
        LABELS: _json(labels.model_dump(mode="json")),
        PREPROCESS: _json(preprocess.model_dump(mode="json")),
        FACTS: _json(dict(facts)),
        SIGNATURE: _signature(preprocess.eval_px, len(labels)),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for name, data in contents.items():
        _write_durably(fresh / name, data)
    seal(fresh)
    _replace(folder, fresh)
    return folder


def load_package(folder: Path, digest: str | None = None) -> Package:
    """Verify the seal (and `digest`), then build the model; its logits are the writer's bit by bit.

    Raises:
        Altered: a file is not what was sealed. BrokenPackage: it is, but makes no model.
        Misuse: there is no such folder.
    """
    if not folder.is_dir():
        raise Misuse(f"{folder}: no such package folder")
    contents, digest = read_sealed(folder, digest)
    missing = sorted({WEIGHTS, CONFIG, LABELS, PREPROCESS} - set(contents))
    if missing:
        raise Altered(f"{folder}: the seal does not cover {', '.join(missing)}; no model package")
    config = _parse(PackageConfig, contents[CONFIG], folder / CONFIG)
    labels = _parse(LabelSpace, contents[LABELS], folder / LABELS)
    preprocess = _parse(PreprocessSpec, contents[PREPROCESS], folder / PREPROCESS)
    facts = _values(contents.get(FACTS, b"{}"), folder / FACTS)
    if config.format != 1 or config.num_classes != len(labels):
        raise BrokenPackage(
            f"{folder}: config.json says format {config.format} and {config.num_classes} classes; "
            f"expected format 1 and the {len(labels)} classes of labels.json"
        )
    model = build_network(config.model, config.num_classes, None).eval()
    weights = unpack(contents[WEIGHTS], model.state_dict(), str(folder / WEIGHTS))
    model.load_state_dict(weights)
    return Package(config.model, model, labels, preprocess, facts, digest)


def _check_state(state: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    wrong = sorted(set(state) ^ set(right)) or [
        name for name, tensor in right.items() if state[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(
            f"the weights do not fit model and labels: {len(wrong)} tensors differ, the first "
            f"is {wrong[0]}"
        )


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _values(data: bytes, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(data) if len(data) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise BrokenPackage(f"{path}: is no JSON object of at most {MAX_JSON_BYTES:,} bytes")
    return values


def _parse(spec: type[AnySpec], data: bytes, path: Path) -> AnySpec:
    try:
        return spec.parse(_values(data, path), str(path))
    except Misuse as error:
        raise BrokenPackage(str(error)) from None


def _signature(px: int, num_classes: int) -> bytes:
    """Return MLflow's description: uint8 RGB images in, logits out; no loader to be run."""
    images = {"dtype": "uint8", "shape": [-1, px, px, 3]}
    logits = {"dtype": "float32", "shape": [-1, num_classes]}
    signature = {
        "inputs": json.dumps([{"name": "images", "type": "tensor", "tensor-spec": images}]),
        "outputs": json.dumps([{"name": "logits", "type": "tensor", "tensor-spec": logits}]),
        "params": None,
    }
    flavor = {"weights": WEIGHTS, "config": CONFIG, "labels": LABELS, "preprocess": PREPROCESS}
    return yaml.safe_dump({"flavors": {"efficientnet": flavor}, "signature": signature}).encode()


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(folder: Path, fresh: Path) -> None:
    sync_folder(fresh)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(fresh, folder)
    sync_folder(folder.parent)
