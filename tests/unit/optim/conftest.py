"""A small module of each kind of tensor, and torch kept to one thread."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch to one thread, so that the tests neither fight over cores nor differ by host."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def module() -> Callable[[int], nn.Module]:
    """Make a convolution, a BatchNorm and a classifier with weights of the given seed."""

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))
        with torch.no_grad():
            for tensor in made.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand_like(tensor))
        return made

    return make
