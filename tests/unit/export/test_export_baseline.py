"""A model of timm is packaged like any other, and its package asks for timm and nothing else."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.labels import LabelSpace
from pipeline.data.preprocess import PreprocessSpec
from pipeline.export.package import load_package, write_package
from pipeline.export.weights import BrokenPackage
from pipeline.models.network import Network, build_network
from pipeline.models.table import ModelSpec
from pipeline.spec import Misuse
from pipeline.tracking.digests import seal

SPEC = ModelSpec(name="timm/test_resnet")
LABELS = LabelSpace(name="pets", classes=("n01", "n02", "n03"))


@pytest.fixture
def baseline() -> Network:
    return build_network(SPEC, len(LABELS), np.random.default_rng(0)).eval()


@pytest.fixture
def folder(tmp_path: Path, baseline: Network, preprocess: PreprocessSpec) -> Path:
    state = baseline.state_dict()
    return write_package(tmp_path / "package", SPEC, state, LABELS, preprocess, {"top1": 0.5})


def test_a_loaded_baseline_gives_the_writer_s_logits_bit_by_bit(
    folder: Path, baseline: Network, preprocess: PreprocessSpec
) -> None:
    package = load_package(folder)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    with torch.inference_mode():
        right = baseline(((images.float() - mean) / std).permute(0, 3, 1, 2))
    assert torch.equal(package.logits(images), right) and right.std() > 0
    assert package.spec == SPEC


def test_without_timm_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Misuse, match=r"pip install 'effnet-cluster\[timm\]'"):
        load_package(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/hf-hub:evil/model", "no such model"),
        ("timm/local-dir:/tmp/evil", "no such model"),
        ("timm/test_convnext", "does not fit the model"),
    ],
)
def test_a_package_that_names_another_place_or_model_is_refused(
    folder: Path, name: str, message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["name"] = name
    (folder / "config.json").write_text(json.dumps(config))
    seal(folder)
    with pytest.raises(BrokenPackage, match=message):
        load_package(folder)
