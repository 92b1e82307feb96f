"""Dropout and drop-path masks: values, rates, keys, and where they act."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.models.efficientnet import EfficientNet
from pipeline.models.noise import Noise, draw_noise, drop_path_rates
from pipeline.plan.draws import Stream, keyed

Make = Callable[..., EfficientNet]
Images = Callable[[int, int], torch.Tensor]


def test_rates_rise_linearly_and_never_reach_the_last() -> None:
    assert drop_path_rates(4, 0.2) == pytest.approx((0, 0.05, 0.1, 0.15))


def test_a_factor_is_zero_or_one_over_keep() -> None:
    noise = draw_noise([0.0, 0.2, 0.5], 0.25, 500, 8, np.random.default_rng(0))
    assert noise.drop_path.shape == (3, 500) and noise.dropout.shape == (500, 8)
    assert noise.drop_path.dtype == noise.dropout.dtype == torch.float32
    assert noise.drop_path[0].unique().tolist() == [1]
    assert noise.drop_path[1].unique().tolist() == pytest.approx([0, 1.25])
    assert noise.drop_path[2].unique().tolist() == [0, 2]
    assert noise.dropout.unique().tolist() == pytest.approx([0, 4 / 3])


def test_the_expectation_is_one() -> None:
    noise = draw_noise([0.1, 0.5], 0.4, 40_000, 2, np.random.default_rng(1))
    # Five standard errors: sqrt(rate / (1 - rate) / 40,000) * 5.
    assert noise.drop_path[0].mean().item() == pytest.approx(1, abs=0.0084)
    assert noise.drop_path[1].mean().item() == pytest.approx(1, abs=0.025)
    assert noise.dropout.mean().item() == pytest.approx(1, abs=0.0145)


def test_the_key_alone_decides(tiny: Make) -> None:
    model = tiny()

    def draw(*key: int) -> Noise:
        return model.draw_noise(64, 0.5, keyed(Stream.NOISE, *key))

    again, other_step, other_batch = draw(1, 10, 0), draw(1, 11, 0), draw(1, 10, 1)
    first = draw(1, 10, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (other_step, other_batch):
        assert not torch.equal(first.drop_path, other.drop_path)
        assert not torch.equal(first.dropout, other.dropout)


def test_a_layer_s_draws_do_not_hang_on_the_rates_of_others() -> None:
    few = draw_noise([0.0, 0.3], 0.5, 32, 4, np.random.default_rng(5))
    more = draw_noise([0.9, 0.3], 0.5, 32, 4, np.random.default_rng(5))
    off = draw_noise([0.0, 0.3], 0.0, 32, 4, np.random.default_rng(5))
    assert torch.equal(few.drop_path[1], more.drop_path[1])
    assert torch.equal(few.dropout, more.dropout)
    assert torch.equal(few.drop_path, off.drop_path)


def test_a_rate_of_one_is_refused() -> None:
    with pytest.raises(AssertionError, match="drop rate"):
        draw_noise([0.0], 1.0, 2, 2, np.random.default_rng(0))


def test_blocks_without_a_skip_are_never_dropped(tiny: Make) -> None:
    model = tiny(drop_path=0.9)
    noise = model.draw_noise(256, 0.0, np.random.default_rng(0))
    for index, block in enumerate(model.layout.blocks):
        dropped = bool((noise.drop_path[index] == 0).any())
        assert dropped == (block.has_skip and index > 0)


def test_samples_are_dropped_one_by_one(tiny: Make, images: Images) -> None:
    """Dropping a branch for one sample leaves the others as they are (BatchNorm set aside)."""
    model = tiny()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
    none = Noise(torch.ones(len(model.blocks), 3), torch.ones(3, model.layout.head))
    one = none._replace(drop_path=none.drop_path.clone())
    last = max(i for i, block in enumerate(model.layout.blocks) if block.has_skip)
    one.drop_path[last, 1] = 0
    with torch.no_grad():
        before, after = model(images(3, 32), none), model(images(3, 32), one)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_dropped_features_never_reach_the_classifier(tiny: Make, images: Images) -> None:
    model = tiny()
    noise = model.draw_noise(2, 0.0, np.random.default_rng(0))
    silent = noise._replace(dropout=torch.zeros_like(noise.dropout))
    assert torch.equal(model(images(2, 32), silent), model.classifier.bias.expand(2, -1))


def test_noise_acts_in_training_only(tiny: Make, images: Images) -> None:
    model = tiny()
    noise = model.draw_noise(2, 0.5, np.random.default_rng(0))
    with torch.no_grad():
        assert not torch.equal(model(images(2, 32), noise), model(images(2, 32)))
        model.eval()
        assert torch.equal(model(images(2, 32), noise), model(images(2, 32)))


def test_noise_moves_between_devices() -> None:
    noise = Noise(torch.ones(2, 3), torch.ones(3, 4)).to("meta")
    assert isinstance(noise, Noise) and noise.dropout.device.type == "meta"
