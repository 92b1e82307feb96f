"""What travels from a worker to the training: tickets one way, micro-batches the other."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.data.order import check_division


class StepSettings(Protocol):
    """What the loader needs to know of a step."""

    @property
    def px(self) -> int: ...
    @property
    def randaugment(self) -> float: ...
    @property
    def micro_batches(self) -> int: ...


class Steps(Protocol):
    """The plan as the loader sees it: settings of every step, and where to end."""

    @property
    def total_steps(self) -> int: ...
    def at(self, step: int, /) -> StepSettings:
        """Return the settings of `step`, 0 <= step < total_steps."""
        ...


class Ticket(NamedTuple):
    """One micro-batch to be made; everything that changes with the stage is in it."""

    step: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] - no one counts fields
    px: int
    magnitude: float
    micro_batches: int
    first_step: int


class MicroBatch(NamedTuple):
    """One micro-batch of a step.

    images: (B, px, px, 3) uint8; labels: (B, K) int64, -1 where a sample has fewer than K;
    ids: (B,) int64 sample ids; step; index: number of the micro-batch in its step.
    """

    step: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] - no one counts fields
    images: Tensor
    labels: Tensor
    ids: Tensor


class EvalBatch(NamedTuple):
    """Images (B, px, px, 3) uint8, labels (B, K) int64 padded with -1, sample ids (B,) int64."""

    images: Tensor
    labels: Tensor
    ids: Tensor


class Share(NamedTuple):
    """Which part of every global batch a rank works on."""

    global_batch: int
    rank: int
    world: int
    lanes: int

    def tickets(self, plan: Steps, first_step: int) -> Iterator[list[Ticket]]:
        """Yield the rank's tickets step by step: micro-batches j with j % world == rank.

        Raises:
            Misuse: the numbers of a stage do not divide each other.
        """
        for step in count(first_step):
            if step >= plan.total_steps:
                return
            at = plan.at(step)
            check_division(self.global_batch, at.micro_batches, self.lanes, self.world)
            yield [
                Ticket(step, j, at.px, at.randaugment, at.micro_batches, first_step)
                for j in range(self.rank, at.micro_batches, self.world)
            ]


def pad_labels(labels: Sequence[tuple[int, ...]]) -> Tensor:
    """Return (B, K) int64 labels, K the most that one sample has, padded with -1."""
    padded = np.full((len(labels), max(map(len, labels), default=1)), -1, np.int64)
    for row, own in zip(padded, labels, strict=True):
        row[: len(own)] = own
    return torch.from_numpy(padded)
