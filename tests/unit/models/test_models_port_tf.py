"""Official TensorFlow weights: TensorFlow's own logits come out, each variable has its place."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from pipeline.models.efficientnet import EfficientNet, build
from pipeline.models.port_tf import TfVariables, find_variables, official_spec, translate_tf
from pipeline.models.table import TABLE, ModelSpec
from pipeline.models.tf_bundle import open_bundle
from pipeline.spec import Misuse
from tests.unit.models import bundles

FILES = Path(__file__).parent / "files"
ROOT = "efficientnetv2-micro"
AVERAGE = "/ExponentialMovingAverage"


@pytest.fixture
def micro(monkeypatch: pytest.MonkeyPatch) -> EfficientNet:
    monkeypatch.setitem(TABLE, "micro", bundles.MICRO)
    return build(ModelSpec(name="micro", padding="same"), 3, None).eval()


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """All that TensorFlow wrote, to be written again with a change."""
    bundle = open_bundle(FILES / "micro")
    return {name: bundle.read(name) for name in bundle.entries}


def waves(px: int) -> Tensor:
    """The images that TensorFlow was shown, (2, 3, px, px)."""
    values = np.sin(np.arange(2 * px * px * 3) * 0.37).astype(np.float32)
    return torch.from_numpy(values).view(2, px, px, 3).permute(0, 3, 1, 2)


def found(folder: Path, arrays: dict[str, np.ndarray]) -> TfVariables:
    return find_variables(open_bundle(bundles.write(folder / "model", arrays)))


def logits(model: nn.Module, px: int) -> Tensor:
    with torch.inference_mode():
        return model(waves(px))


def test_logits_are_those_of_tensorflow(micro: EfficientNet) -> None:
    """At an even and an odd size: the padding differs at each stride."""
    micro.load_state_dict(translate_tf(find_variables(open_bundle(FILES / "micro")), micro))
    expected = json.loads((FILES / "micro.json").read_text())
    for px in (20, 27):
        right = torch.tensor(expected[str(px)])
        assert right.std() > 0.1
        assert (logits(micro, px) - right).abs().max() < 1e-5


@pytest.mark.parametrize(("field", "value"), [("padding", "symmetric"), ("bn_eps", 1e-5)])
def test_the_comparison_notices_a_wrong_setting(
    micro: EfficientNet, field: str, value: object
) -> None:
    state = translate_tf(find_variables(open_bundle(FILES / "micro")), micro)
    wrong = build(micro.spec.model_copy(update={field: value}), 3, None).eval()
    wrong.load_state_dict(state)
    expected = json.loads((FILES / "micro.json").read_text())
    assert (logits(wrong, 20) - torch.tensor(expected["20"])).abs().max() > 1e-4


def test_averaged_values_are_preferred_and_plain_ones_serve_where_there_are_none(
    micro: EfficientNet, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    name = "stem/conv2d/kernel"
    averaged = arrays[f"{ROOT}/{name}{AVERAGE}"].transpose(3, 2, 0, 1)
    plain = arrays[f"{ROOT}/{name}"].transpose(3, 2, 0, 1)
    assert not np.allclose(averaged, plain, atol=1e-4)
    both = translate_tf(found(tmp_path / "both", arrays), micro)
    assert (both["stem.conv.weight"].numpy() == averaged).all()
    only = {key: value for key, value in arrays.items() if AVERAGE not in key}
    assert (
        translate_tf(found(tmp_path / "only", only), micro)["stem.conv.weight"].numpy() == plain
    ).all()
    # As a tool leaves it that keeps what is evaluated, and nothing else.
    alone = {key: value for key, value in arrays.items() if AVERAGE in key}
    again = translate_tf(found(tmp_path / "alone", alone), micro)
    assert all(torch.equal(again[key], both[key]) for key in both)


def test_weights_of_two_ages_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    del arrays[f"{ROOT}/blocks_1/conv2d/kernel{AVERAGE}"]
    with pytest.raises(Misuse, match=r"1 of 79 variables have no averaged .*/blocks_1/conv2d/k"):
        found(tmp_path, arrays)


def test_slots_and_the_step_are_dropped_and_nothing_else(
    micro: EfficientNet, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    kept = find_variables(open_bundle(FILES / "micro"))
    assert kept.root == ROOT
    assert kept.num_classes == 3
    assert len(kept.stored) == len(micro.state_dict())
    assert not [name for name in kept.stored if "RMSProp" in name or "step" in name]
    arrays[f"{ROOT}/extra/RMSProp"] = arrays[f"{ROOT}/extra/RMSProp{AVERAGE}"] = np.ones(1, "f4")
    with pytest.raises(Misuse, match="'extra/RMSProp' is left over"):
        translate_tf(found(tmp_path, arrays), micro)


def test_every_misfit_is_named(
    micro: EfficientNet, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    plain = {key: value for key, value in arrays.items() if AVERAGE not in key}
    del plain[f"{ROOT}/head/conv2d/kernel"]
    plain[f"{ROOT}/blocks_9/conv2d/kernel"] = np.ones((1, 1, 4, 4), "f4")
    depthwise = f"{ROOT}/blocks_3/depthwise_conv2d/depthwise_kernel"
    plain[depthwise] = plain[depthwise].transpose(0, 1, 3, 2)
    with pytest.raises(Misuse) as caught:
        translate_tf(found(tmp_path, plain), micro)
    message = str(caught.value)
    for words in (
        f"model ({ROOT}): not the official TensorFlow weights of 'micro' with 3 classes",
        "'head/conv2d/kernel' is missing",
        "'blocks_9/conv2d/kernel' is left over",
        "depthwise_kernel' has shape (5, 5, 1, 16), expected (5, 5, 16, 1)",
    ):
        assert words in message


def test_a_checkpoint_without_head_or_of_something_else_is_refused(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    headless = {key: value for key, value in arrays.items() if "/dense/" not in key}
    with pytest.raises(Misuse, match=f"holds no '{ROOT}/head/dense/bias'"):
        _ = found(tmp_path / "a", headless).num_classes
    with pytest.raises(Misuse, match="holds 0 official EfficientNets .* begin with bert/x"):
        found(tmp_path / "b", {"bert/x": np.ones(1, "f4")})
    two = arrays | {"efficientnetv2-s/stem/conv2d/kernel": np.ones(1, "f4")}
    with pytest.raises(Misuse, match="holds 2 official EfficientNets"):
        found(tmp_path / "c", two)
    keras = arrays | {"_CHECKPOINTABLE_OBJECT_GRAPH": np.ones(1, "f4")}
    with pytest.raises(Misuse, match=r"Keras objects.*tf.compat.v1.train.Saver"):
        found(tmp_path / "d", keras)


def test_the_official_names_of_models_stand_for_rows_of_the_table() -> None:
    for name, row in (("efficientnetv2-s", "v2_s"), ("efficientnetv2-b3", "v2_b3"),
                      ("efficientnet-b7", "v1_b7"), ("efficientnetv2-xl", "v2_xl")):  # fmt: skip
        spec = official_spec(name)
        assert spec is not None
        assert (spec.name, spec.padding, spec.bn_eps) == (row, "same", 1e-3)
    assert official_spec("efficientnet-l2") is None
    assert official_spec("tiny") is None
    assert official_spec(ROOT) is None


_PARTS = {
    # timm's names in a block: the official ones, by what makes the kinds of block differ.
    "conv_exp": {"conv_exp": "conv2d", "bn1": "", "conv_pwl": "conv2d_1", "bn2": "_1"},
    "conv_pwl": {
        "conv_pw": "conv2d", "bn1": "", "conv_dw": "depthwise_conv2d", "bn2": "_1",
        "conv_pwl": "conv2d_1", "bn3": "_2",
    },
    "conv_dw": {"conv_dw": "depthwise_conv2d", "bn1": "", "conv_pw": "conv2d", "bn2": "_1"},
    "conv": {"conv": "conv2d", "bn1": ""},
}  # fmt: skip
_FINE = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
         "running_var": "moving_variance"}  # fmt: skip


def officially(model: nn.Module, root: str) -> dict[str, np.ndarray]:
    """Give timm's tensors the official names and layout, as its author did the other way round."""
    out: dict[str, np.ndarray] = {}

    def norm(scope: str, layer: str) -> None:
        for ours, theirs in _FINE.items():
            out[f"{root}/{scope}/{theirs}"] = state[f"{layer}.{ours}"].numpy()

    def conv(name: str, layer: str) -> None:
        order = (2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0)
        out[f"{root}/{name}"] = state[f"{layer}.weight"].permute(order).contiguous().numpy()

    state = {key: tensor for key, tensor in model.state_dict().items() if "tracked" not in key}
    for end, names in (("stem", ("conv_stem", "bn1")), ("head", ("conv_head", "bn2"))):
        conv(f"{end}/conv2d/kernel", names[0])
        norm(f"{end}/tpu_batch_normalization", names[1])
    out[f"{root}/head/dense/kernel"] = state["classifier.weight"].T.contiguous().numpy()
    out[f"{root}/head/dense/bias"] = state["classifier.bias"].numpy()
    prefixes = list(dict.fromkeys(
        ".".join(key.split(".")[:3]) for key in state if key.startswith("blocks.")
    ))  # fmt: skip
    for index, prefix in enumerate(prefixes):
        kind = next(part for part in _PARTS if f"{prefix}.{part}.weight" in state)
        for theirs, official in _PARTS[kind].items():
            scope = f"blocks_{index}"
            if theirs.startswith("bn"):
                norm(f"{scope}/tpu_batch_normalization{official}", f"{prefix}.{theirs}")
            else:
                leaf = "depthwise_kernel" if theirs == "conv_dw" else "kernel"
                conv(f"{scope}/{official}/{leaf}", f"{prefix}.{theirs}")
        if f"{prefix}.se.conv_reduce.weight" in state:
            for theirs, official in (("conv_reduce", "conv2d"), ("conv_expand", "conv2d_1")):
                conv(f"blocks_{index}/se/{official}/kernel", f"{prefix}.se.{theirs}")
                bias = state[f"{prefix}.se.{theirs}.bias"].numpy()
                out[f"{root}/blocks_{index}/se/{official}/bias"] = bias
    return out


@pytest.mark.parametrize("size", ["v2-b0", "-b0"])
def test_whole_models_come_through_the_file_with_timm_s_logits(
    size: str,
    tmp_path: Path,
    lively: Callable[[nn.Module, int], nn.Module],
    images: Callable[[int, int], Tensor],
) -> None:
    root = f"efficientnet{size}"
    with torch.device("meta"):
        theirs = timm.create_model(f"tf_{root.replace('-', '_')}", num_classes=20)
    lively(theirs, 64).eval()
    variables = found(tmp_path, officially(theirs, root))
    spec = official_spec(variables.root)
    assert spec is not None
    ours = build(spec, variables.num_classes, None).eval()
    ours.load_state_dict(translate_tf(variables, ours))
    with torch.inference_mode():
        for px in (64, 75):
            expected = theirs(images(1, px))
            assert 0.1 < expected.std() < 100
            assert (ours(images(1, px)) - expected).abs().max() < 1e-4


def test_weights_of_another_size_are_refused(
    micro: EfficientNet, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with torch.device("meta"):
        other = EfficientNet(ModelSpec(name="v2_b0", padding="same"), 3)
    with pytest.raises(Misuse, match=r"'v2_b0' with 3 classes: .* and \d+ more; choose the model"):
        translate_tf(found(tmp_path, arrays), other)
