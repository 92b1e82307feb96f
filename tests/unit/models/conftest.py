"""Models with random but sane weights, for tests that compare numbers."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models.efficientnet import EfficientNet, build
from pipeline.models.table import ModelSpec


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch to one thread, so that the tests neither fight over cores nor differ by host."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> Callable[..., EfficientNet]:
    """Build `tiny` with 10 classes from seed 0; settings may be overridden."""

    def make(seed: int = 0, **settings: object) -> EfficientNet:
        spec = ModelSpec.parse({"name": "tiny", **settings}, "test")
        return build(spec, 10, np.random.default_rng(seed))

    return make


@pytest.fixture
def images() -> Callable[[int, int], torch.Tensor]:
    """Draw a batch of normal noise, (batch, 3, px, px), the same each time."""

    def draw(batch: int, px: int) -> torch.Tensor:
        rng = np.random.default_rng(7)
        return torch.from_numpy(rng.standard_normal((batch, 3, px, px), dtype=np.float32))

    return draw


@pytest.fixture
def lively(images: Callable[[int, int], torch.Tensor]) -> Callable[[nn.Module, int], nn.Module]:
    """Give a meta model random weights, and BatchNorm statistics near those of real features.

    With made-up statistics a hundred blocks would drown or explode every signal, and equal logits
    would prove nothing.
    """

    def fill(model: nn.Module, px: int) -> nn.Module:
        rng = np.random.default_rng(3)
        model.to_empty(device="cpu")
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        with torch.no_grad():
            for parameter in model.parameters():
                draws = rng.random(tuple(parameter.shape), dtype=np.float32)
                parameter.copy_(torch.from_numpy(draws)).sub_(0.5)
                fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 100
                parameter.mul_((12 / fan_in) ** 0.5)
            for norm in norms:
                norm.reset_running_stats()
                norm.weight.add_(1)
                norm.momentum = 1.0
            model.train()(images(2, px))
            for norm in norms:
                assert norm.running_mean is not None and norm.running_var is not None
                # Few pixels reach the last blocks: lean on the mean over channels, and damp.
                var = norm.running_var
                draws = rng.uniform(1.0, 1.6, norm.num_features).astype(np.float32)
                var.lerp_(var.mean().expand_as(var), 0.5).mul_(torch.from_numpy(draws))
                norm.running_mean.add_(var.sqrt() * torch.from_numpy(draws - 1.3))
                norm.momentum = 0.1
        return model

    return fill
