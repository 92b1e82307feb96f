"""Mixup and cutmix: formulas of the official code, keyed draws, any memory format and device."""

import numpy as np
import pytest
import torch

from pipeline.data.mix import cut_boxes, cut_mix, mix, mix_up
from pipeline.plan.draws import Stream, keyed
from pipeline.spec import Misuse

B, C, H, W, K = 8, 3, 12, 10, 5


def batch(size: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, C, H, W, generator=generator)
    return images, torch.eye(K)[torch.arange(size) % K]


def rng(step: int = 0, micro_batch: int = 0) -> np.random.Generator:
    return keyed(Stream.MIX, 0, step, micro_batch)


def test_mixup_blends_with_the_mirrored_batch_by_each_samples_own_lambda():
    images, targets = batch()
    mixed, soft = mix_up(images, targets, 0.3, rng())
    drawn = rng().beta(0.3, 0.3, B)
    lam = torch.from_numpy(np.maximum(drawn, 1 - drawn)).float()
    for i in range(B):
        partner = B - 1 - i
        expected = lam[i] * images[i] + (1 - lam[i]) * images[partner]
        torch.testing.assert_close(mixed[i], expected)
        torch.testing.assert_close(soft[i], lam[i] * targets[i] + (1 - lam[i]) * targets[partner])
    assert len(set(lam.tolist())) == B and lam.min() >= 0.5


def test_cutmix_pastes_the_mirrors_box_and_weighs_labels_by_its_area():
    images, targets = batch()
    mixed, soft = cut_mix(images, targets, 1.0, rng(3))
    left, top, right, bottom = cut_boxes(B, H, W, 1.0, rng(3))
    for i in range(B):
        expected = images[i].clone()
        box = (slice(None), slice(top[i], bottom[i]), slice(left[i], right[i]))
        expected[box] = images[B - 1 - i][box]
        assert torch.equal(mixed[i], expected)
        share = (right[i] - left[i]) * (bottom[i] - top[i]) / (H * W)
        torch.testing.assert_close(soft[i], (1 - share) * targets[i] + share * targets[B - 1 - i])


def test_official_mean_weighs_all_labels_by_the_mean_box():
    images, targets = batch()
    mixed, soft = cut_mix(images, targets, 1.0, rng(3), official_mean=True)
    boxes = cut_boxes(B, H, W, 1.0, rng(3))
    mean = float(((boxes[2] - boxes[0]) * (boxes[3] - boxes[1])).mean() / (H * W))
    torch.testing.assert_close(soft, (1 - mean) * targets + mean * targets.flip(0))
    assert torch.equal(mixed, cut_mix(images, targets, 1.0, rng(3))[0])


def test_boxes_follow_the_official_distribution():
    """Side sqrt(1 - Beta(1, 1)) has mean square 1/2; centres are uniform, boxes clipped."""
    left, top, right, bottom = cut_boxes(20_000, 200, 100, 1.0, rng())
    assert left.min() == 0 and right.max() == 100 and top.min() == 0 and bottom.max() == 200
    inside = (left > 0) & (right < 100) & (top > 0) & (bottom < 200)
    ratio = (bottom - top)[inside] / np.maximum((right - left)[inside], 1)
    assert abs(np.median(ratio) - 2) < 0.1
    drawn = rng().beta(1.0, 1.0, 20_000)
    widest = np.floor(np.sqrt(1 - drawn) * 100)
    assert (right - left <= widest).all()
    assert np.array_equal((right - left)[inside], widest[inside] // 2 * 2)


def test_with_both_on_the_first_half_is_mixed_up_and_the_second_half_cut():
    images, targets = batch(9)
    mixed, soft = mix(images, targets, 0.5, 0.7, rng(1))
    generator = rng(1)
    first = mix_up(images[:4], targets[:4], 0.5, generator)
    second = cut_mix(images[4:], targets[4:], 0.7, generator)
    assert torch.equal(mixed, torch.cat([first[0], second[0]]))
    assert torch.equal(soft, torch.cat([first[1], second[1]]))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0), (0, 0.2), (0.067, 0.067), (5, 5)])
def test_targets_still_sum_to_one_and_inputs_are_untouched(mixup, cutmix):
    images, targets = batch()
    before = images.clone(), targets.clone()
    mixed, soft = mix(images, targets, mixup, cutmix, rng())
    torch.testing.assert_close(soft.sum(1), torch.ones(B))
    assert torch.equal(images, before[0]) and torch.equal(targets, before[1])
    assert mixed.shape == images.shape and mixed.dtype == images.dtype
    assert torch.isfinite(mixed).all()


def test_only_the_key_decides():
    images, targets = batch()
    first = mix(images, targets, 0.5, 0.5, rng(7, 2))
    torch.manual_seed(99)
    again = mix(images, targets, 0.5, 0.5, rng(7, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (rng(8, 2), rng(7, 3)):
        assert not torch.equal(mix(images, targets, 0.5, 0.5, other)[0], first[0])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0), (0, 0.5), (0.5, 0.5)])
def test_channels_last_stays_and_changes_no_value(mixup, cutmix):
    images, targets = batch()
    plain = mix(images, targets, mixup, cutmix, rng())[0]
    last = mix(images.to(memory_format=torch.channels_last), targets, mixup, cutmix, rng())[0]
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_off_means_the_same_tensors_come_back_and_nothing_is_drawn():
    images, targets = batch(2)
    generator = rng()
    assert mix(images, targets, 0, 0, generator) == (images, targets)
    assert generator.random() == rng().random()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.1, 0), (0, 0.1)])
def test_a_group_under_four_is_refused(mixup, cutmix):
    with pytest.raises(Misuse, match="3 images.*batch.global_size"):
        mix(*batch(3), mixup, cutmix, rng())


@pytest.mark.gpu
def test_a_gpu_gets_the_same_draws():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    images, targets = batch()
    on_cpu = mix(images, targets, 0.5, 0.5, rng())
    on_gpu = mix(images.cuda(), targets.cuda(), 0.5, 0.5, rng())
    for a, b in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(a, b.cpu())
