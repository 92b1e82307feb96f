"""State dicts in the files that timm and torchvision publish and write; nothing in them is run.

A file is safetensors, or what `torch.save` wrote, read with `weights_only`. Training scripts wrap
the weights in a larger dict; of several the averaged ones are taken, as these are the ones that
the published scores belong to.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.spec import Failure, Misuse

MAX_CONFIG_BYTES = 2**20
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys that weights stand under, averaged ones first (timm's CheckpointSaver, torchvision's
references/classification)."""
MAX_WRAPPERS = 4
IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
"""What a folder from the Hugging Face hub calls them."""
_COUNTER = "n_averaged"
"""torch's AveragedModel keeps it beside the weights."""


def find_file(place: Path) -> Path:
    """Return the file of weights at `place`: itself, or that of a folder from the hub.

    Raises:
        Misuse: there is none.
    """
    files = [place / name for name in IN_FOLDERS] if place.is_dir() else [place]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise Misuse(
            f"{place}: no such file of weights; name a .safetensors or .pth file, or a folder that "
            f"holds {' or '.join(IN_FOLDERS)}"
        )
    return found


def model_names(file: Path) -> tuple[str, ...]:
    """Return what may be the name of the model in `file`, the surest first.

    That is the `architecture` of a config.json beside it, as on the hub, and the file's own name
    up to each `-`, `.` or `_` from the end: the published `tf_efficientnetv2_s-eb54923e.pth`
    gives `tf_efficientnetv2_s-eb54923e`, `tf_efficientnetv2_s`, `tf_efficientnetv2` and `tf`.
    """
    names: list[str] = []
    config = file.parent / "config.json"
    if file.name in IN_FOLDERS and config.is_file():
        with open(config, "rb") as opened:
            data = opened.read(MAX_CONFIG_BYTES)
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            raise Failure(f"{config}: is no JSON of under {MAX_CONFIG_BYTES:,} bytes") from None
        if isinstance(values, Mapping) and isinstance(values.get("architecture"), str):
            names.append(values["architecture"])
    stem = file.stem
    cuts = [place for place, letter in enumerate(stem) if letter in "-._"]
    return (*names, *(stem[:end] for end in (len(stem), *reversed(cuts))))


def read_state(file: Path) -> dict[str, Tensor]:
    """Return the weights in `file`, on the CPU.

    Raises:
        Failure: it cannot be read as what it is named.
        Misuse: it holds something else than weights.
    """
    try:
        values = load_file(file) if file.suffix == ".safetensors" else _read_saved(file)
    except (Failure, Misuse):
        raise
    except Exception as error:  # whatever the two formats' readers stumble over
        raise Failure(
            f"{file}: cannot be read as weights ({type(error).__name__}): it is damaged, or holds "
            "objects that are no plain tensors and would have to be run; fetch it again, or save "
            "model.state_dict()"
        ) from None
    state = _unwrap(values)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    odd = sorted(state.keys() - tensors.keys())
    if odd or not tensors:
        raise Misuse(
            f"{file}: holds no state dict, but a {type(values).__name__} with {len(odd)} things "
            f"that are no tensors ({', '.join(odd[:3])[:200]}); save model.state_dict()"
        )
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _read_saved(file: Path) -> object:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            # torch.save stores as it is: a compressed member could be of any size once unpacked.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise Failure(f"{file}: is compressed, which torch.save never does; refused")
    return torch.load(file, map_location="cpu", weights_only=True)


def _unwrap(values: object) -> dict[str, object]:
    """Return the innermost dict of weights, empty where `values` is no dict."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(values, Mapping):
            return {}
        key = next((key for key in WRAPPERS if isinstance(values.get(key), Mapping)), None)
        if key is None:
            return {str(name): value for name, value in values.items() if name != _COUNTER}
        values = values[key]
    return {}
