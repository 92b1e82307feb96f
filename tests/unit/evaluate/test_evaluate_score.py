"""Exact scores: the same for any dealing of images over ranks, right for several labels."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.evaluate.score import Scores, score
from pipeline.evaluate.settings import EvaluateSpec


class Table(nn.Module):
    """Logits looked up by the first pixel."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def batches(ids: list[int], labels: torch.Tensor, size: int):
    for start in range(0, len(ids), size):
        chunk = torch.tensor(ids[start : start + size])
        yield chunk.view(-1, 1, 1, 1).to(torch.uint8), labels[chunk], chunk


def filler(totals: list[torch.Tensor]) -> Callable[[torch.Tensor], None]:
    """Stand in for the other ranks: each sum becomes the next of `totals`."""
    queue = iter(totals)

    def fill(tensor: torch.Tensor) -> None:
        tensor.copy_(next(queue))

    return fill


def run(model: Table, labels: torch.Tensor, world: int, size: int = 3) -> list[Scores]:
    """Score as `world` ranks would, with the sums of all of them."""
    shares = []
    for rank in range(world):
        sums: list[torch.Tensor] = []
        ids = list(range(rank, len(labels), world))
        expected = len(ids)
        score(model, batches(ids, labels, size), lambda x: x, 7, expected, sums.append)
        shares.append(sums)
    totals = [torch.stack([share[i] for share in shares]).sum(0) for i in range(2)]
    results = []
    for rank in range(world):
        ids = list(range(rank, len(labels), world))
        results.append(
            score(
                model,
                batches(ids, labels, size),
                lambda x: x,
                7,
                len(labels),
                filler(totals),
                num_guesses=4,
            )
        )
    return results


@pytest.fixture
def table() -> tuple[Table, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(23, 7, generator=generator)
    labels = torch.randint(0, 7, (23, 1), generator=generator)
    return Table(logits).eval(), labels


def test_scores_equal_a_direct_computation(table: tuple[Table, torch.Tensor]) -> None:
    model, labels = table
    result = run(model, labels, 1)[0]
    logits = model.logits.detach()
    assert result.num_images == 23
    assert result.top1 == pytest.approx((logits.argmax(1) == labels[:, 0]).double().mean().item())
    top5 = (logits.topk(5).indices == labels).any(1).double().mean().item()
    assert result.top5 == pytest.approx(top5)
    loss = nn.functional.cross_entropy(logits, labels[:, 0]).item()
    assert result.loss == pytest.approx(loss, rel=1e-6)


def test_scores_do_not_depend_on_ranks_or_batch_size(table: tuple[Table, torch.Tensor]) -> None:
    model, labels = table
    one = run(model, labels, 1, size=23)[0]
    for world in (2, 3, 4):
        for result in run(model, labels, world, size=2):
            assert (result.top1, result.top5, result.num_images) == (one.top1, one.top5, 23)
            assert result.confusion == one.confusion
            assert result.loss == pytest.approx(one.loss, rel=1e-12)


def test_the_confusion_counts_every_image_in_its_row(table: tuple[Table, torch.Tensor]) -> None:
    model, labels = table
    confusion = run(model, labels, 1)[0].confusion
    assert confusion is not None
    assert [sum(row) for row in confusion] == torch.bincount(labels[:, 0], minlength=7).tolist()


def test_any_of_several_labels_counts_as_right() -> None:
    model = Table(torch.eye(7)).eval()
    labels = torch.tensor([[3, 0], [1, -1], [6, 5]])
    assert run(model, labels, 1)[0].top1 == pytest.approx(2 / 3)


def test_padding_never_matches_a_class() -> None:
    model = Table(torch.eye(7)).eval()
    assert run(model, torch.tensor([[4, -1]]), 1)[0].top1 == 0.0


def test_a_missing_image_is_an_error(table: tuple[Table, torch.Tensor]) -> None:
    model, labels = table
    with pytest.raises(RuntimeError, match="saw 22 images, the split has 23"):
        score(model, batches(list(range(22)), labels, 4), lambda x: x, 7, 23, lambda t: None)


def test_guesses_show_wrong_ones_first_and_carry_id_label_and_probability(
    table: tuple[Table, torch.Tensor],
) -> None:
    model, labels = table
    guesses = run(model, labels, 1)[0].guesses
    predicted = model.logits.argmax(1)
    wrong = (predicted != labels[:, 0]).nonzero().flatten().tolist()
    right = (predicted == labels[:, 0]).nonzero().flatten().tolist()
    assert [guess.id for guess in guesses] == wrong[:2] + right[:2]
    first = guesses[0]
    assert (first.label, first.predicted) == (int(labels[first.id, 0]), int(predicted[first.id]))
    assert first.probability == pytest.approx(model.logits[first.id].softmax(0).max().item())


def test_many_classes_have_no_confusion_table() -> None:
    model = Table(torch.zeros(2, 1500)).eval()
    labels = torch.tensor([[1], [1499]])
    result = score(model, batches([0, 1], labels, 2), lambda x: x, 1500, 2, lambda t: None)
    assert result.confusion is None


def test_the_interval_is_given_in_steps_or_percent() -> None:
    assert EvaluateSpec(every_steps=9).interval(1000) == 9
    assert EvaluateSpec(every_percent=5.0).interval(1000) == 50
