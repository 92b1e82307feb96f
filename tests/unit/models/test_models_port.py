"""Logits and gradients equal to torchvision's and timm's, given the same weights."""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from pipeline.models.batchnorm import StepBatchNorm2d, commit_statistics
from pipeline.models.efficientnet import EfficientNet, build
from pipeline.models.port import Library, ported_spec, translate
from pipeline.spec import Misuse

Images = Callable[[int, int], torch.Tensor]
Lively = Callable[[nn.Module, int], nn.Module]

TORCHVISION = [f"efficientnet_v2_{size}" for size in "sml"] + [
    f"efficientnet_b{i}" for i in range(8)
]
TIMM = [
    *(f"tf_efficientnetv2_{size}" for size in ("s", "m", "l", "xl", "b0", "b1", "b2", "b3")),
    *(f"tf_efficientnet_b{index}" for index in range(8)),
    *(f"efficientnet_b{index}" for index in range(8)),
    "efficientnetv2_s",
]
ALL = [("torchvision", name) for name in TORCHVISION] + [("timm", name) for name in TIMM]


def theirs(library: Library, name: str, num_classes: int = 1000) -> nn.Module:
    """Build the other library's model on the meta device, without dropping anything."""
    with torch.device("meta"):
        if library == "timm":
            return timm.create_model(name, num_classes=num_classes)
        quiet = {"stochastic_depth_prob": 0.0, "dropout": 0.0}
        return torchvision.models.get_model(name, **quiet, num_classes=num_classes)


def ported(library: Library, name: str, model: nn.Module, num_classes: int) -> EfficientNet:
    """Build ours around the very tensors of theirs (shared, so XL fits twice)."""
    with torch.device("meta"):
        ours = EfficientNet(ported_spec(library, name), num_classes)
    ours.load_state_dict(translate(model.state_dict(), library, ours, name), assign=True)
    for layer in ours.modules():
        if isinstance(layer, StepBatchNorm2d):
            layer.mean_sum = torch.zeros_like(layer.running_mean)
            layer.var_sum = torch.zeros_like(layer.running_var)
    return ours


@pytest.mark.parametrize(("library", "name"), ALL)
def test_logits_are_equal(library: Library, name: str, images: Images, lively: Lively) -> None:
    other = lively(theirs(library, name, num_classes=50), 64).eval()
    ours = ported(library, name, other, 50).eval()
    with torch.no_grad():
        # 64 px stays even for long, 75 px mixes odd and even maps: padding 'same' shows on both.
        for px in (64, 75):
            expected, logits = other(images(1, px)), ours(images(1, px))
            assert 0.1 < expected.std() < 100
            assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("field", "value"), [("padding", "symmetric"), ("bn_eps", 1e-5)])
def test_the_comparison_notices_a_wrong_setting(
    field: str, value: object, images: Images, lively: Lively
) -> None:
    """Guards the test above: with weights as made up there, the settings must show."""
    other = lively(theirs("timm", "tf_efficientnetv2_b0", num_classes=50), 64).eval()
    right = ported_spec("timm", "tf_efficientnetv2_b0")
    ours = build(right.model_copy(update={field: value}), 50, None).eval()
    ours.load_state_dict(translate(other.state_dict(), "timm", ours, "b0"))
    with torch.no_grad():
        assert (ours(images(1, 64)) - other(images(1, 64))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("torchvision", "efficientnet_v2_s"),
        ("torchvision", "efficientnet_b0"),
        ("timm", "tf_efficientnetv2_b0"),
        ("timm", "tf_efficientnet_b0"),
    ],
)
def test_training_gradients_and_statistics_are_equal(
    library: Library, name: str, images: Images, lively: Lively
) -> None:
    """In fp64, so that only a difference in the arithmetic shows."""
    other = lively(theirs(library, name, num_classes=10), 64).double().train()
    ours = build(ported_spec(library, name), 10, None).double().train()
    ours.load_state_dict(translate(other.state_dict(), library, ours, name))
    targets = torch.tensor([1, 2, 3, 4, 5, 6])
    for model in (other, ours):
        F.cross_entropy(model(images(6, 65).double()), targets).backward()
    commit_statistics(ours, 1, None, 1)
    gradients = {n: p.grad for n, p in other.named_parameters() if p.grad is not None}
    expected = translate({**other.state_dict(), **gradients}, library, ours, name)
    for ours_name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[ours_name], msg=ours_name)
    statistics = translate(other.state_dict(), library, ours, name)
    for ours_name, buffer in ours.state_dict().items():
        if "running" in ours_name:
            torch.testing.assert_close(buffer, statistics[ours_name], msg=ours_name)


def test_settings_come_from_the_library_s_habits() -> None:
    assert ported_spec("torchvision", "efficientnet_b4").bn_eps == 1e-5
    assert ported_spec("torchvision", "efficientnet_b5").bn_eps == 1e-3
    assert ported_spec("torchvision", "efficientnet_v2_l").padding == "symmetric"
    spec = ported_spec("timm", "tf_efficientnetv2_xl.in21k_ft_in1k")
    assert (spec.name, spec.padding, spec.bn_eps) == ("v2_xl", "same", 1e-3)
    assert ported_spec("timm", "efficientnet_b0.ra_in1k").padding == "symmetric"


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("torchvision", "resnet50"),
        ("torchvision", "efficientnet_v2_xl"),
        ("torchvision", "tf_efficientnet_b0"),
        ("timm", "tf_efficientnet_b8"),
        ("timm", "efficientnetv2_rw_s"),
    ],
)
def test_a_model_without_counterpart_is_refused(library: Library, name: str) -> None:
    with pytest.raises(Misuse, match=f"{library} model '{name}': no counterpart") as caught:
        ported_spec(library, name)
    assert "efficientnet_b7" in str(caught.value)


def test_every_misfit_is_named() -> None:
    state = theirs("torchvision", "efficientnet_b0").state_dict()
    with torch.device("meta"):
        ours = EfficientNet(ported_spec("torchvision", "efficientnet_b0"), 1000)
    assert translate(state, "torchvision", ours, "ok").keys() == ours.state_dict().keys()

    del state["features.0.0.weight"]
    state["ema.decay"] = torch.ones(1)
    state["features.8.1.bias"] = torch.empty(7, device="meta")
    with pytest.raises(Misuse) as caught:
        translate(state, "torchvision", ours, "b0.safetensors")
    message = str(caught.value)
    assert message.startswith("b0.safetensors: not the torchvision weights of 'v1_b0' with 1000")
    assert "'features.0.0.weight' is missing" in message
    assert "'ema.decay' is left over" in message
    assert "'features.8.1.bias' has shape (7,), expected (1280,)" in message


def test_weights_of_another_model_are_refused() -> None:
    state = theirs("timm", "tf_efficientnetv2_b1").state_dict()
    with torch.device("meta"):
        ours = EfficientNet(ported_spec("timm", "tf_efficientnetv2_b0"), 1000)
    with pytest.raises(Misuse, match=r"left over.* and \d+ more; choose the model"):
        translate(state, "timm", ours, "b1")


def test_another_number_of_classes_is_refused() -> None:
    state = theirs("timm", "efficientnet_b0", num_classes=10).state_dict()
    with torch.device("meta"):
        ours = EfficientNet(ported_spec("timm", "efficientnet_b0"), 1000)
    with pytest.raises(Misuse, match=r"'classifier.weight' has shape \(10, 1280\), expected"):
        translate(state, "timm", ours, "b0")
