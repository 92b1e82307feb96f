"""Names and shapes of the official checkpoints' variables, block by block.

Source: google/automl efficientnetv2/effnetv2_model.py (layer names of Stem, MBConvBlock,
FusedMBConvBlock, SE and Head; the norm has its name from utils.py). The same names are read by
the public converters of OpenMMLab (efficientnet_to_mmpretrain.py), EfficientNet-PyTorch
(convert_tf_to_pt/load_tf_weights.py) and Keras (efficientnet_weight_update_util.py).
"""

import pytest
import torch

from pipeline.models.efficientnet import EfficientNet
from pipeline.models.port_tf import official_shape, official_spec, tf_names

NORM = ("gamma", "beta", "moving_mean", "moving_variance")
S_FIRST = {
    # efficientnetv2-s: the stem, a Fused-MBConv without expansion, one with, an MBConv, the head.
    "stem/conv2d/kernel": (3, 3, 3, 24),
    "stem/tpu_batch_normalization/moving_variance": (24,),
    "blocks_0/conv2d/kernel": (3, 3, 24, 24),
    "blocks_0/tpu_batch_normalization/gamma": (24,),
    "blocks_2/conv2d/kernel": (3, 3, 24, 96),
    "blocks_2/tpu_batch_normalization/beta": (96,),
    "blocks_2/conv2d_1/kernel": (1, 1, 96, 48),
    "blocks_2/tpu_batch_normalization_1/moving_mean": (48,),
    "blocks_10/conv2d/kernel": (1, 1, 64, 256),
    "blocks_10/tpu_batch_normalization/gamma": (256,),
    "blocks_10/depthwise_conv2d/depthwise_kernel": (3, 3, 256, 1),
    "blocks_10/tpu_batch_normalization_1/gamma": (256,),
    "blocks_10/se/conv2d/kernel": (1, 1, 256, 16),
    "blocks_10/se/conv2d/bias": (16,),
    "blocks_10/se/conv2d_1/kernel": (1, 1, 16, 256),
    "blocks_10/se/conv2d_1/bias": (256,),
    "blocks_10/conv2d_1/kernel": (1, 1, 256, 128),
    "blocks_10/tpu_batch_normalization_2/gamma": (128,),
    "blocks_39/tpu_batch_normalization_2/moving_mean": (256,),
    "head/conv2d/kernel": (1, 1, 256, 1280),
    "head/tpu_batch_normalization/gamma": (1280,),
    "head/dense/kernel": (1280, 1000),
    "head/dense/bias": (1000,),
}
V1_B0_FIRST = {
    # The depthwise block without expansion: its one plain convolution is the first, not the second.
    "blocks_0/depthwise_conv2d/depthwise_kernel": (3, 3, 32, 1),
    "blocks_0/tpu_batch_normalization/gamma": (32,),
    "blocks_0/se/conv2d/kernel": (1, 1, 32, 8),
    "blocks_0/se/conv2d/bias": (8,),
    "blocks_0/se/conv2d_1/kernel": (1, 1, 8, 32),
    "blocks_0/se/conv2d_1/bias": (32,),
    "blocks_0/conv2d/kernel": (1, 1, 32, 16),
    "blocks_0/tpu_batch_normalization_1/beta": (16,),
    "blocks_3/depthwise_conv2d/depthwise_kernel": (5, 5, 144, 1),
    "head/dense/kernel": (1280, 1000),
}
PARAMS = {
    # Published counts (weights and BatchNorm affine) and blocks, facts of the model table.
    "efficientnetv2-s": (21_458_488, 40),
    "efficientnetv2-m": (54_139_356, 57),
    "efficientnetv2-l": (118_515_272, 79),
    "efficientnetv2-xl": (208_119_808, 100),
    "efficientnetv2-b0": (7_139_704, 21),
    "efficientnetv2-b3": (14_358_406, 32),
    "efficientnet-b0": (5_288_548, 16),
    "efficientnet-b7": (66_347_960, 55),
}


def variables(name: str) -> dict[str, tuple[int, ...]]:
    """Return the official variables of a model with 1000 classes, and their shapes."""
    spec = official_spec(name)
    assert spec is not None
    with torch.device("meta"):
        model = EfficientNet(spec, 1000)
    shapes = {ours: tuple(tensor.shape) for ours, tensor in model.state_dict().items()}
    return {theirs: official_shape(shapes[ours], theirs) for ours, theirs in tf_names(model)}


@pytest.mark.parametrize(
    ("name", "expected"), [("efficientnetv2-s", S_FIRST), ("efficientnet-b0", V1_B0_FIRST)]
)
def test_variables_have_their_official_names_and_shapes(
    name: str, expected: dict[str, tuple[int, ...]]
) -> None:
    found = variables(name)
    assert {key: found.get(key) for key in expected} == expected


def test_a_block_has_just_the_official_variables() -> None:
    found = variables("efficientnetv2-s")

    def of(block: str) -> set[str]:
        return {key.removeprefix(block) for key in found if key.startswith(block)}

    norms = [{f"tpu_batch_normalization{number}/{part}" for part in NORM} for number in
             ("", "_1", "_2")]  # fmt: skip
    assert of("blocks_0/") == {"conv2d/kernel"} | norms[0]
    assert of("blocks_2/") == {"conv2d/kernel", "conv2d_1/kernel"} | norms[0] | norms[1]
    squeeze = {f"se/conv2d{number}/{part}" for number in ("", "_1") for part in ("kernel", "bias")}
    kernels = {"conv2d/kernel", "depthwise_conv2d/depthwise_kernel", "conv2d_1/kernel"}
    assert of("blocks_10/") == kernels | squeeze | norms[0] | norms[1] | norms[2]
    assert of("head/") == {"conv2d/kernel", "dense/kernel", "dense/bias"} | norms[0]
    assert of("stem/") == {"conv2d/kernel"} | norms[0]


@pytest.mark.parametrize("name", PARAMS)
def test_the_variables_add_up_to_the_published_count(name: str) -> None:
    found = variables(name)
    params, blocks = PARAMS[name]
    trained = {key: shape for key, shape in found.items() if "/moving_" not in key}
    assert sum(torch.Size(shape).numel() for shape in trained.values()) == params
    numbers = {int(key.split("/")[0][7:]) for key in found if key.startswith("blocks_")}
    assert numbers == set(range(blocks))
