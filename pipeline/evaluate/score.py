"""Scores a model on a split: loss, top-1, top-5, confusion, and a few pictures to look at.

Each rank scores its own images without talking to the others; sums and counts meet once at the
end, so the result does not depend on how images were dealt out. The count must come out as the
manifest says.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (B, px, px, 3) uint8, labels (B, K) padded with -1, sample ids (B,)."""

MAX_CONFUSION_CLASSES = 1000


@dataclass(frozen=True)
class Guess:
    """What the model said of one image."""

    id: int
    label: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Scores:
    """The result over all ranks; `top1` and `top5` are fractions of `num_images`."""

    num_images: int
    loss: float
    top1: float
    top5: float
    confusion: list[list[int]] | None
    guesses: list[Guess]


@torch.inference_mode()
def score(
    model: nn.Module,
    batches: Iterable[Batch],
    to_input: Callable[[Tensor], Tensor],
    num_classes: int,
    expected: int,
    all_reduce_sum: Callable[[Tensor], None],
    num_guesses: int = 0,
) -> Scores:
    """Score `model` (in eval mode) on this rank's share of a split of `expected` images.

    An image counts as right where the guess is any of its labels. `to_input` turns uint8 images
    into what the model takes. The guesses are this rank's own, up to half of them wrong ones.

    Raises:
        RuntimeError: the ranks together did not see `expected` images.
    """
    assert not model.training
    device = next(model.parameters()).device
    keep_confusion = num_classes <= MAX_CONFUSION_CLASSES
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    cells = num_classes * num_classes if keep_confusion else 0
    confusion = torch.zeros(cells, dtype=torch.int64, device=device)
    guesses: list[Guess] = []
    for images, labels, ids in batches:
        labels = labels.to(device)
        logits = model(to_input(images)).float()
        sums += _sums(logits, labels)
        predicted = logits.argmax(1)
        if keep_confusion:
            pairs = labels[:, 0] * num_classes + predicted
            confusion += torch.bincount(pairs, minlength=cells)
        guesses = _chosen(guesses + _guesses(logits, labels, ids), num_guesses)
    all_reduce_sum(sums)
    all_reduce_sum(confusion)
    count = round(float(sums[0]))
    if count != expected:
        raise RuntimeError(f"evaluation saw {count} images, the split has {expected}")
    loss, top1, top5 = (sums[1:] / count).tolist()
    table = confusion.view(num_classes, -1).tolist() if keep_confusion else None
    return Scores(count, loss, top1, top5, table, guesses)


def _chosen(guesses: list[Guess], count: int) -> list[Guess]:
    """Keep the first wrong guesses, up to half of `count`, and fill up with right ones."""
    wrong = [guess for guess in guesses if guess.predicted != guess.label][: count // 2]
    right = [guess for guess in guesses if guess.predicted == guess.label]
    return wrong + right[: count - len(wrong)]


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Return count, summed loss, top-1 hits and top-5 hits of a batch as float64 (4,)."""
    valid = labels >= 0
    log_probability = F.log_softmax(logits, 1)
    picked = log_probability.gather(1, labels.clamp(min=0)) * valid
    loss = -(picked.sum(1) / valid.sum(1))
    top = logits.topk(min(5, logits.shape[1]), 1).indices
    hits = (top[:, :, None] == torch.where(valid, labels, -1)[:, None, :]).any(2)
    return torch.stack(
        [
            torch.tensor(float(len(labels)), dtype=torch.float64, device=logits.device),
            loss.double().sum(),
            hits[:, 0].double().sum(),
            hits.any(1).double().sum(),
        ]
    )


def _guesses(logits: Tensor, labels: Tensor, ids: Tensor) -> list[Guess]:
    probability, predicted = logits.softmax(1).max(1)
    columns = (ids, labels[:, 0], predicted, probability)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [Guess(*row) for row in rows]
