"""Losses: soft targets that sum to one, several labels for an image, three kinds of loss."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.optim.loss import Kind, loss_fn, soft_targets
from pipeline.optim.settings import LossSpec, RmspropSpec
from pipeline.spec import Misuse, Spec


def test_one_label_is_one_hot() -> None:
    targets = soft_targets(torch.tensor([[2], [0]]), 4, 0.0)
    assert targets.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert targets.dtype == torch.float32


def test_several_labels_share_one() -> None:
    """The official 21k recipe: a multi-hot row is divided by the number of its labels."""
    labels = torch.tensor([[3, 1, -1], [0, 1, 2], [2, -1, -1]])
    expected = torch.tensor([[0, 0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 1, 0]])
    torch.testing.assert_close(soft_targets(labels, 4, 0.0), expected)


def test_a_label_given_twice_counts_once() -> None:
    assert soft_targets(torch.tensor([[1, 1, 2]]), 3, 0.0).tolist() == [[0, 0.5, 0.5]]


def test_padding_does_not_touch_the_first_class() -> None:
    assert soft_targets(torch.tensor([[0, -1, -1]]), 3, 0.0).tolist() == [[1, 0, 0]]
    assert soft_targets(torch.tensor([[2, -1, -1]]), 3, 0.0).tolist() == [[0, 0, 1]]


def test_smoothing_is_spread_over_all_classes() -> None:
    targets = soft_targets(torch.tensor([[1]]), 4, 0.1)
    assert targets[0].tolist() == pytest.approx([0.025, 0.925, 0.025, 0.025])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(0, 0.9))
def test_targets_always_sum_to_one(labels: list[int], smoothing: float) -> None:
    padded = torch.tensor([labels + [-1] * (6 - len(labels))])
    targets = soft_targets(padded, 10, smoothing)
    assert targets.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert targets.min() >= 0


@pytest.mark.parametrize("kind", ["sigmoid_mean", "sigmoid_sum"])
def test_labels_count_whole_for_the_sigmoid_losses(kind: Kind) -> None:
    """Each class is a question of its own; smoothing draws its answer towards a half."""
    labels = torch.tensor([[3, 1, -1], [2, -1, -1]])
    assert soft_targets(labels, 4, 0.0, kind).tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]
    smoothed = soft_targets(labels, 4, 0.2, kind)[1].tolist()
    assert smoothed == pytest.approx([0.1, 0.1, 0.9, 0.1])


def test_softmax_is_torchs_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 10, generator=generator)
    labels = torch.randint(10, (8, 1), generator=generator)
    ours = loss_fn(LossSpec(label_smoothing=0.1))(logits, soft_targets(labels, 10, 0.1))
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels[:, 0], label_smoothing=0.1))


def test_sigmoid_kinds_are_the_mean_and_the_sum_over_classes() -> None:
    """The released code's 'sigmoid' and 'custom': log 2 for each class where logits are zero."""
    logits, targets = torch.zeros(3, 5), soft_targets(torch.tensor([[0], [1], [2]]), 5, 0.0)
    mean = loss_fn(LossSpec(kind="sigmoid_mean"))(logits, targets)
    total = loss_fn(LossSpec(kind="sigmoid_sum"))(logits, targets)
    assert mean.item() == pytest.approx(math.log(2))
    assert total.item() == pytest.approx(5 * math.log(2))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid_mean", "sigmoid_sum"])
def test_a_loss_is_the_mean_of_its_halves(kind: str) -> None:
    """Accumulating equal micro-batches gives the loss of the whole batch."""
    loss = loss_fn(LossSpec.parse({"kind": kind}, "test"))
    logits = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    targets = soft_targets(torch.arange(8).remainder(6).unsqueeze(1), 6, 0.1)
    halves = (loss(logits[:4], targets[:4]) + loss(logits[4:], targets[4:])) / 2
    torch.testing.assert_close(loss(logits, targets), halves)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid_mean", "sigmoid_sum"])
def test_losses_are_computed_in_fp32(kind: str) -> None:
    loss = loss_fn(LossSpec.parse({"kind": kind}, "test"))
    logits = torch.full((2, 4), 200.0, dtype=torch.bfloat16, requires_grad=True)
    value = loss(logits, soft_targets(torch.tensor([[0], [1]]), 4, 0.0))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (LossSpec, {"kind": "hinge"}, "'softmax', 'sigmoid_mean' or 'sigmoid_sum'"),
        (LossSpec, {"label_smoothing": 1.0}, "less than 1"),
        (LossSpec, {"smoothing": 0.1}, "field 'smoothing' is unknown"),
        (RmspropSpec, {"eps": 0}, "greater than 0"),
        (RmspropSpec, {"decay": 1.0}, "less than 1"),
        (RmspropSpec, {"weight_decay": -1e-5}, "greater than or equal to 0"),
        (RmspropSpec, {"kind": "sgd"}, "rmsprop_tf"),
    ],
)
def test_wrong_settings_are_refused(
    settings: type[Spec], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(Misuse, match=message):
        settings.parse(values, "test")
