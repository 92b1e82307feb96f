"""The published parameter counts and multiply-adds, read from the very rows that are built."""

import pytest
import torch

from pipeline.models import count
from pipeline.models.efficientnet import EfficientNet
from pipeline.models.table import TABLE, ModelSpec

# Parameters and multiply-adds / 1e9 as printed on torchvision's model pages ("num_params" and
# "GFLOPS" of resnet18, resnet50, regnet_y_400mf, convnext_tiny, mobilenet_v3_small, swin_t, vgg11,
# vit_b_16).
BASELINES = {
    "resnet18": (11_689_512, 1.81),
    "resnet50": (25_557_032, 4.09),
    "regnety_004": (4_344_144, 0.40),
    "convnext_tiny": (28_589_128, 4.46),
    "mobilenetv3_small_100": (2_542_856, 0.06),
    "swin_tiny_patch4_window7_224": (28_288_354, 4.49),
    "vgg11": (132_863_336, 7.61),
    "vit_base_patch16_224": (86_567_656, 17.56),
}

PARAMS = [(name, classes) for name, row in TABLE.items() for classes in row.params]
GMACS = [(name, px) for name, row in TABLE.items() for px in row.gmacs]
OWN = ("tiny", "v2_cifar")


@pytest.mark.parametrize(("name", "num_classes"), PARAMS)
def test_parameters_are_the_published_ones(name: str, num_classes: int) -> None:
    row = TABLE[name]
    assert count.params(row, num_classes) == row.params[num_classes]


@pytest.mark.parametrize(("name", "px"), GMACS)
def test_multiply_adds_are_the_published_ones_to_the_printed_digit(name: str, px: int) -> None:
    row = TABLE[name]
    gmacs = count.macs(row, px, 10 if name in OWN else 1000) / 1e9
    assert round(gmacs, 4 if name in OWN else 3) == row.gmacs[px]


@pytest.mark.parametrize(("name", "num_classes"), PARAMS)
def test_modules_hold_what_was_counted(name: str, num_classes: int) -> None:
    with torch.device("meta"):
        model = EfficientNet(ModelSpec(name=name), num_classes)
    assert sum(p.numel() for p in model.parameters()) == TABLE[name].params[num_classes]


def test_every_head_width_is_covered() -> None:
    """The four label spaces of facts and papers, for every model that has published counts."""
    four = {1000, 10_450, 21_841, 21_843}
    for name, row in TABLE.items():
        if name in OWN:
            assert row.params.keys() == {10}
        elif name == "v2_s_arxiv_v1":
            assert row.params.keys() == {1000}
        else:
            # The 10,450-class count of V1-B3 is the one that was never published.
            assert row.params.keys() == (four - {10_450} if name == "v1_b3" else four), name


def test_counts_of_other_sources() -> None:
    """Independent prints: torchvision's model pages, and the arXiv-v1 slides (24M)."""
    assert count.params(TABLE["v2_m"], 1000) == 54_139_356
    assert round(count.macs(TABLE["v2_m"], 480, 1000) / 1e9, 2) == 24.58
    assert count.params(TABLE["v2_l"], 1000) == 118_515_272
    assert round(count.macs(TABLE["v2_l"], 480, 1000) / 1e9, 2) == 56.08
    assert round(count.params(TABLE["v2_s_arxiv_v1"], 1000) / 1e6) == 24
    assert round(count.macs(TABLE["v2_s_arxiv_v1"], 384, 1000) / 1e9, 1) == 8.6


@pytest.mark.parametrize(("name", "published"), BASELINES.items())
def test_baselines_have_the_published_parameters_and_multiply_adds(
    name: str, published: tuple[int, float]
) -> None:
    """What is built with our BatchNorm and head is the model that the library's pages speak of."""
    spec = ModelSpec(name=f"timm/{name}")
    assert count.model_params(spec, 1000) == published[0]
    assert round(count.model_macs(spec, 224, 1000) / 1e9, 2) == published[1]
