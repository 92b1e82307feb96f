"""The network: shapes, first weights, padding, memory layout, compilation."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.models.batchnorm import commit_statistics
from pipeline.models.blocks import SameConv2d
from pipeline.models.count import convolutions
from pipeline.models.efficientnet import EfficientNet, build
from pipeline.models.table import TABLE, ModelSpec

Make = Callable[..., EfficientNet]
Images = Callable[[int, int], torch.Tensor]


@pytest.mark.parametrize("name", ["tiny", "v2_cifar"])
@pytest.mark.parametrize("px", [16, 17, 32])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_small_models_give_logits_and_features(
    name: str, px: int, padding: str, images: Images
) -> None:
    spec = ModelSpec.parse({"name": name, "padding": padding}, "test")
    model = build(spec, 10, np.random.default_rng(0))
    assert model(images(2, px)).shape == (2, 10)
    assert model.features(images(2, px)).shape == (2, TABLE[name].head)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("px", [31, 32])
@pytest.mark.parametrize("name", ["tiny", "v2_b0", "v1_b0"])
def test_feature_maps_are_as_large_as_counted(name: str, px: int, padding: str) -> None:
    with torch.device("meta"):
        model = EfficientNet(ModelSpec.parse({"name": name, "padding": padding}, "test"), 10)
        seen: list[int] = []
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda _m, _x, out: seen.append(out.shape[-1]))
        model.eval()(torch.empty(1, 3, px, px))
    counted = [conv.px for conv in convolutions(model.layout, px, 10)]
    assert seen == counted[:-1]


def test_the_same_seed_gives_the_same_model(tiny: Make) -> None:
    one, two, other = tiny(seed=1), tiny(seed=1), tiny(seed=2)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert not torch.equal(one.stem.conv.weight, other.stem.conv.weight)


def test_building_leaves_the_global_random_state_alone(tiny: Make) -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()
    tiny()
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_equal(np.random.get_state(), numpy_before)


def test_first_weights_follow_the_official_distributions() -> None:
    model = build(ModelSpec(name="v2_b0"), 1000, np.random.default_rng(0))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels / layer.groups
            count = layer.weight.numel()
            # Six standard errors of a deviation estimated from `count` draws.
            error = 6 / math.sqrt(2 * count)
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=error)
            assert layer.bias is None or layer.bias.eq(0).all()
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.eq(1).all() and layer.bias.eq(0).all()
            assert all(buffer.isfinite().all() for buffer in layer.buffers())
    limit = 1 / math.sqrt(1000)
    weight = model.classifier.weight
    assert weight.abs().max().item() <= limit * 1.0001
    assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.01)
    assert model.classifier.bias.eq(0).all()


def test_without_a_generator_the_weights_are_zero(images: Images) -> None:
    model = build(ModelSpec(name="tiny"), 10, None)
    assert model.eval()(images(2, 16)).eq(0).all()
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(layer.running_var.eq(1).all() for layer in norms if layer.running_var is not None)


def test_settings_reach_every_norm(tiny: Make) -> None:
    model = tiny(bn_eps=0.5, bn_momentum=0.25)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(layer.eps, layer.momentum) for layer in norms} == {(0.5, 0.25)}


@pytest.mark.parametrize(
    ("px", "kernel", "before", "after"),
    [(224, 3, 0, 1), (171, 3, 1, 1), (224, 5, 1, 2), (171, 5, 2, 2), (1, 3, 1, 1), (2, 3, 0, 1)],
)
def test_same_padding_puts_the_odd_pixel_last(
    px: int, kernel: int, before: int, after: int
) -> None:
    conv = SameConv2d(1, 1, kernel, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    image = torch.arange(float(px * px)).view(1, 1, px, px)
    padded = F.pad(image, (before, after, before, after))
    expected = F.conv2d(padded, conv.weight, stride=2)
    assert conv(image).shape[-1] == math.ceil(px / 2)
    torch.testing.assert_close(conv(image), expected)


def test_paddings_differ_on_even_sizes_and_agree_on_odd_ones(tiny: Make, images: Images) -> None:
    symmetric, same = tiny().eval(), tiny(padding="same").eval()
    with torch.no_grad():
        assert not torch.allclose(symmetric(images(2, 32)), same(images(2, 32)))
        # 33, 17, 9, 5: odd at every stride.
        torch.testing.assert_close(symmetric(images(2, 33)), same(images(2, 33)))


def test_channels_last_and_bf16_compute_the_same(tiny: Make, images: Images) -> None:
    model = tiny().eval()
    with torch.no_grad():
        plain = model(images(4, 32))
        model = model.to(memory_format=torch.channels_last)
        last = images(4, 32).to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(last), plain, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(last)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, rtol=0.1, atol=0.1 * plain.std().item())


def test_a_compiled_step_is_one_graph_and_equals_the_plain_one(tiny: Make, images: Images) -> None:
    plain = tiny()
    compiled = copy.deepcopy(plain)
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager", dynamic=False)
    noise = plain.draw_noise(4, 0.2, np.random.default_rng(0))
    for forward in (plain, graph):
        forward(images(4, 16), noise).square().mean().backward()
    commit_statistics(plain, 1, None, 1)
    commit_statistics(compiled, 1, None, 1)
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(buffer, compiled.get_buffer(name), msg=name)


def test_a_few_steps_learn_something(tiny: Make, images: Images) -> None:
    model = tiny(drop_path=0.0)
    targets = torch.arange(20) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(images(20, 16)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
