"""Targets and the three losses against a second writing, in numpy with 64-bit floats.

Source: main.py of google/automl, efficientnetv2, and TensorFlow's documentation of
`tf.losses.softmax_cross_entropy`, `tf.losses.sigmoid_cross_entropy` and
`tf.nn.sigmoid_cross_entropy_with_logits`. Labels of ImageNet-21k are several ones in a row.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.optim.loss import Kind, loss_fn, soft_targets
from pipeline.optim.settings import LossSpec

Array = NDArray[np.float64]
CLASSES = 11
LABELS = [[3, -1, -1], [0, 10, -1], [5, 4, 2], [10, -1, -1], [1, 3, 5]]


def multi_hot() -> Array:
    rows = np.zeros((len(LABELS), CLASSES))
    for row, labels in zip(rows, LABELS, strict=True):
        row[[label for label in labels if label >= 0]] = 1.0
    return rows


def official_softmax(logits: Array, labels: Array, smoothing: float) -> float:
    """Divide labels by their count, smooth over all classes, mean of the cross entropies."""
    labels = labels / labels.sum(axis=1, keepdims=True)
    labels = labels * (1.0 - smoothing) + smoothing / labels.shape[1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-(labels * log_probability).sum(axis=1).mean())


def binary_cross_entropies(logits: Array, labels: Array) -> Array:
    """max(x, 0) - x z + log(1 + exp(-|x|)), as TensorFlow documents it."""
    return np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))


def official_sigmoid(logits: Array, labels: Array, smoothing: float) -> float:
    """The 'sigmoid' there: labels drawn towards a half, mean over images and classes."""
    labels = labels * (1.0 - smoothing) + 0.5 * smoothing
    return float(binary_cross_entropies(logits, labels).mean())


def official_custom(logits: Array, labels: Array, smoothing: float) -> float:
    """The 'custom' there: sum over classes, mean over images; it has no smoothing."""
    assert smoothing == 0
    return float(binary_cross_entropies(logits, labels).sum(axis=1).mean())


def logits(scale: float) -> Array:
    return np.random.default_rng(2).normal(size=(len(LABELS), CLASSES)) * scale


CASES = [
    ("softmax", 0.0, official_softmax),
    ("softmax", 0.1, official_softmax),
    ("sigmoid_mean", 0.0, official_sigmoid),
    ("sigmoid_mean", 0.1, official_sigmoid),
    ("sigmoid_sum", 0.0, official_custom),
]


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("kind", "smoothing", "official"), CASES)
def test_losses_of_several_labels_are_the_official_ones(
    kind: Kind, smoothing: float, official, scale: float
) -> None:
    targets = soft_targets(torch.tensor(LABELS), CLASSES, smoothing, kind)
    loss = loss_fn(LossSpec(kind=kind, label_smoothing=smoothing))
    mine = loss(torch.tensor(logits(scale)), targets)
    assert mine.item() == pytest.approx(official(logits(scale), multi_hot(), smoothing), rel=2e-6)


def test_labels_are_shared_for_softmax_and_whole_for_the_sigmoids() -> None:
    labels = torch.tensor(LABELS)
    shared = multi_hot() / multi_hot().sum(axis=1, keepdims=True)
    np.testing.assert_allclose(soft_targets(labels, CLASSES, 0.0).numpy(), shared, rtol=1e-6)
    for kind in ("sigmoid_mean", "sigmoid_sum"):
        assert np.array_equal(soft_targets(labels, CLASSES, 0.0, kind).numpy(), multi_hot())


@pytest.mark.parametrize(("kind", "smoothing", "official"), CASES)
def test_gradients_are_the_official_ones(kind: Kind, smoothing: float, official) -> None:
    """Central differences of the second writing, one logit at a time."""
    at = logits(1.0)
    mine = torch.tensor(at, requires_grad=True)
    targets = soft_targets(torch.tensor(LABELS), CLASSES, smoothing, kind)
    loss_fn(LossSpec(kind=kind, label_smoothing=smoothing))(mine, targets).backward()
    assert mine.grad is not None
    for place in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[place] = 1e-4
        ahead, behind = (official(at + s * step, multi_hot(), smoothing) for s in (1, -1))
        slope = (ahead - behind) / 2e-4
        assert mine.grad[place].item() == pytest.approx(slope, abs=3e-7 + 1e-5 * abs(slope))
