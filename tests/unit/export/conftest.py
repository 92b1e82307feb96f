"""A small finished model as a package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.labels import LabelSpace
from pipeline.data.preprocess import PreprocessSpec
from pipeline.export.package import write_package
from pipeline.models.efficientnet import EfficientNet, build
from pipeline.models.table import ModelSpec

SPEC = ModelSpec(name="tiny")
LABELS = LabelSpace(
    name="pets", classes=("n01", "n02", "n03", "n04"), display=("cat", "dog", "owl", "eel")
)
FACTS: dict[str, Any] = {"top1": 0.98, "data_digest": "d" * 64, "parent": None}


@pytest.fixture
def trained() -> EfficientNet:
    """Weights and BatchNorm statistics that are not those of a fresh model."""
    model = build(SPEC, len(LABELS), np.random.default_rng(3))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.002 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture
def preprocess() -> PreprocessSpec:
    return PreprocessSpec(eval_px=32, mean=(120.0, 118.0, 104.0), std=(60.0, 58.0, 57.0))


@pytest.fixture
def package_folder(tmp_path: Path, trained: EfficientNet, preprocess: PreprocessSpec) -> Path:
    state = trained.state_dict()
    return write_package(tmp_path / "package", SPEC, state, LABELS, preprocess, FACTS)
