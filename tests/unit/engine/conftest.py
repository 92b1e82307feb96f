"""A world of one rank, in which the parts of a training are tried."""

from collections.abc import Iterator

import pytest
import torch

from pipeline.parallel.world import World, open_world


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    opened = open_world(60)
    yield opened
    opened.close()
    torch.set_num_threads(threads)
