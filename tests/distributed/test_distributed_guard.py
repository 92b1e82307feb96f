"""Ranks leave out the same steps and the same data, and notice when they differ."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SHARDED = ("zero1", "zero2-offload", "zero3", "fsdp")
GO_BACK = ("ddp", "zero3", "fsdp")
CLOSE = 2e-4
"""Sums of another order, grown over 14 steps."""


@dataclass
class Rank:
    """What one rank wrote."""

    outcome: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass
class Results:
    """What the ranks of both worlds wrote."""

    folder: Path

    def of(self, case: str, strategy: str, world: int = 2) -> list[Rank]:
        """Return what came out of a case, rank by rank."""
        folder = self.folder / f"world{world}" / f"{case}:{strategy}"
        return [
            Rank(
                json.loads((folder / f"rank{rank}.json").read_text()),
                load_file(folder / f"rank{rank}.safetensors"),
            )
            for rank in range(world)
        ]


@pytest.fixture(scope="module")
def results(starters, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Everything that this file looks at, of one start of each world."""
    folder = tmp_path_factory.mktemp("guard")
    jobs = [f"skip:{strategy}" for strategy in ("ddp", *SHARDED)]
    jobs += [f"rollback:{strategy}" for strategy in GO_BACK]
    for world, cases in ((1, ["skip:ddp"]), (2, [*jobs, "drift:ddp"])):
        place = folder / f"world{world}"
        place.mkdir()
        words = ["tests.distributed.guard_worker", str(place), *cases]
        starters.start(words, world, place / "log").finish(280)
    return Results(folder)


def same(a: Rank, b: Rank) -> bool:
    assert a.tensors.keys() == b.tensors.keys()
    return a.outcome == b.outcome and all(
        torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors
    )


def largest_difference(a: Rank, b: Rank) -> float:
    assert a.tensors.keys() == b.tensors.keys()
    return max(float((a.tensors[n] - b.tensors[n]).abs().max()) for n in a.tensors)


@pytest.mark.parametrize("strategy", ["ddp", *SHARDED])
def test_a_loss_that_is_bad_on_one_rank_is_left_out_by_all(results: Results, strategy: str) -> None:
    """Under every strategy; and what is left is what one rank alone gets."""
    alone = results.of("skip", "ddp", world=1)[0]
    first, second = results.of("skip", strategy)
    assert same(first, second)
    assert first.outcome["error"] == alone.outcome["error"] == ""
    assert first.outcome["left_out"] == alone.outcome["left_out"] == [3, 6]
    assert largest_difference(first, alone) < CLOSE


@pytest.mark.parametrize("strategy", GO_BACK)
def test_all_ranks_go_back_together_and_go_on_behind_the_same_data(
    results: Results, strategy: str
) -> None:
    first, second = results.of("rollback", strategy)
    assert same(first, second)
    assert first.outcome["windows"] == [[4, 4, 8]]
    assert first.outcome["batches"] == [*range(8), *range(8, 20)]
    assert first.outcome["left_out"] == [7, 8, 9]
    assert all(tensor.isfinite().all() for tensor in first.tensors.values())


def test_a_rank_that_drifted_is_named_and_nothing_of_it_is_saved(results: Results) -> None:
    first, second = results.of("drift", "ddp")
    error = first.outcome["error"]
    assert error == second.outcome["error"]
    assert "step 8: rank 1 differs from rank 0 in 'weights/classifier.weight'" in error
    assert "no checkpoint was taken" in error
    folder = results.folder / "world2" / "drift:ddp" / "checkpoints"
    assert [path.name for path in folder.glob("step-*")] == ["step-000000004"]
