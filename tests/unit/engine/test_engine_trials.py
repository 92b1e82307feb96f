"""Micro-batches found by trial: numbers that are allowed, the largest that fits, and no more."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.engine import trials
from pipeline.engine.trials import Trial, measure_micro_batch, micro_batch_counts, peak_memory
from pipeline.plan.plan import StepPlan
from pipeline.spec import Misuse

MIB = 2**20
REST, PER_IMAGE = 100 * MIB, 3 * MIB
CPU = torch.device("cpu")


class Board:
    """A device on which memory is `REST` plus something for each image; notes what is tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, peak: Callable[[int], int]) -> None:
        self.tried: list[int] = []
        self._peak = peak
        self.world = type("World", (), {"device": CPU})
        monkeypatch.setattr(trials, "try_size", self._try)
        monkeypatch.setattr(trials, "peak_memory", lambda device: Resting())

    def _try(self, stepper: object, plan: StepPlan, batch: int, limit: int) -> Trial | None:
        assert plan.micro_batches * batch == 4096
        self.tried.append(batch)
        peak = self._peak(batch)
        return Trial(batch, peak, 1.0) if peak <= limit else None


class Resting:
    bytes = REST

    def __enter__(self) -> "Resting":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def at(count: int) -> StepPlan:
    return StepPlan(0, 0.0, 1, 300, 0.0, 0.0, 0.0, 0.0, count, 0.0, 1.0)


def found(board: Board, limit_mib: float) -> int:
    counts = micro_batch_counts(4096, 8, 256, mixes=False)
    stepper: Any = board
    return measure_micro_batch(stepper, at, 4096, counts, int(limit_mib * MIB)).batch


def test_allowed_numbers_divide_batch_lanes_and_ranks() -> None:
    assert micro_batch_counts(4096, 8, 256, mixes=False) == [256, 128, 64, 32, 16, 8]
    assert micro_batch_counts(96, 3, 48, mixes=False) == [48, 24, 12, 6, 3]


def test_where_images_are_mixed_a_micro_batch_has_four() -> None:
    assert micro_batch_counts(64, 1, 64, mixes=True) == [16, 8, 4, 2, 1]
    assert micro_batch_counts(64, 1, 64, mixes=False)[0] == 64


def test_numbers_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(Misuse, match=r"batch.global_size 4096.*loader.lanes 256.*3 ranks"):
        micro_batch_counts(4096, 3, 256, mixes=False)


@pytest.mark.parametrize(
    ("limit_mib", "batch"), [(148, 16), (195, 16), (196, 32), (484, 128), (1636, 512), (9999, 512)]
)
def test_the_largest_that_fits_is_found(
    limit_mib: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(monkeypatch, lambda size: REST + PER_IMAGE * size)
    assert found(board, limit_mib) == batch
    assert len(board.tried) <= 2


def test_memory_that_jumps_is_followed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 128 images on another algorithm takes twice as much: the line promised too much."""
    board = Board(monkeypatch, lambda n: REST + (2 if n >= 128 else 1) * PER_IMAGE * n)
    assert found(board, 500) == 64
    assert board.tried == [16, 128, 64]


def test_memory_that_flattens_is_followed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workspace that small micro-batches need as well makes the first line too steep."""
    board = Board(monkeypatch, lambda n: REST + 64 * MIB + MIB * n)
    assert found(board, 300) == 128


def test_too_little_memory_for_any_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(monkeypatch, lambda n: REST + PER_IMAGE * n)
    with pytest.raises(Misuse, match=r"stages.1.px' is 300: not even 16 images fit into 0.12 GiB"):
        found(board, 120)


def test_memory_is_watched_while_a_block_runs() -> None:
    size = 64 * MIB
    with peak_memory(CPU) as before:
        pass
    with peak_memory(CPU) as peak:
        block = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.5)  # a busy machine lets the watching thread run late
        del block
    assert size * 0.8 < peak.bytes - before.bytes < size * 3
