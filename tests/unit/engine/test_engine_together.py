"""Micro-batches that go through the model at once keep their own images, targets and masks."""

import torch

from pipeline.engine.together import Ready, joined
from pipeline.models.noise import Noise


def part(value: float, batch: int = 2) -> Ready:
    noise = Noise(torch.full((3, batch), value), torch.full((batch, 4), value))
    return torch.full((batch, 3, 8, 8), value), torch.full((batch, 5), value), noise


def test_parts_follow_each_other_image_by_image() -> None:
    images, targets, noise = joined([part(1.0), part(2.0), part(3.0)])
    right = torch.tensor([1.0, 1, 2, 2, 3, 3])
    assert images.shape == (6, 3, 8, 8) and targets.shape == (6, 5)
    assert torch.equal(images[:, 0, 0, 0], right) and torch.equal(targets[:, 0], right)
    assert noise.drop_path.shape == (3, 6) and noise.dropout.shape == (6, 4)
    assert torch.equal(noise.drop_path[1], right) and torch.equal(noise.dropout[:, 0], right)


def test_one_part_is_passed_on_as_it_is() -> None:
    only = part(1.0)
    assert joined([only]) is only


def test_the_memory_layout_stays() -> None:
    images, targets, noise = part(1.0)
    images = images.to(memory_format=torch.channels_last)
    whole = joined([(images, targets, noise), (images, targets, noise)])[0]
    assert whole.is_contiguous(memory_format=torch.channels_last)
