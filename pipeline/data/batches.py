"""What travels from a worker to the training: tickets one way, micro-batches the other."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.data.bad import Replaced
from pipeline.data.order import check_division

OP = np.dtype([("code", "<i4"), ("value", "<f8"), ("x", "<i4"), ("y", "<i4")])
"""An `augment.Op` in an array; code -1 where a sample has fewer ops than its neighbours."""
NO_OP = (-1, 0.0, 0, 0)
_SAMPLED = 1024
"""Steps of a plan that are looked at for its largest batch; a stage has far more."""


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

    images: (B, px, px, 3) uint8. With workers they lie in a slot of shared memory, which is used
    again as soon as nothing refers to the tensor any more: who copies them without waiting keeps
    the batch until the copy is done.
    labels: (B, K) int64, -1 where a sample has fewer than K; ids: (B,) int64, the samples shown;
    step; index: number of the micro-batch in its step; ops: (B, L) of `OP`, what the device still
    has to apply, None where that is nothing; replaced: bad samples, and which stand in for them.
    """

    step: int
    index: int  # pyright: ignore[reportIncompatibleMethodOverride] - no one counts fields
    images: Tensor
    labels: Tensor
    ids: Tensor
    ops: np.ndarray | None = None
    replaced: tuple[Replaced, ...] = ()


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
        for step in range(first_step, plan.total_steps):
            at = plan.at(step)
            check_division(self.global_batch, at.micro_batches, self.lanes, self.world)
            yield [
                Ticket(step, j, at.px, at.randaugment, at.micro_batches, first_step)
                for j in range(self.rank, at.micro_batches, self.world)
            ]

    def demand(self, plan: Steps, shape: Callable[[Ticket], tuple[int, ...]]) -> "Demand":
        """Return the most that a step of the plan needs, from a sample of its steps.

        `shape` is that of a ticket's images.
        """
        last = plan.total_steps - 1
        steps = np.linspace(0, last, min(last + 1, _SAMPLED), dtype=np.int64).tolist()
        at = {(s.px, s.micro_batches) for s in map(plan.at, steps)}
        shapes = [shape(Ticket(0, 0, px, 0.0, count, 0)) for px, count in at]
        return Demand(
            slot_bytes=max(map(prod, shapes), default=0),
            at_once=max([1, *(count // self.world for _, count in at)]),
            num_images=min((size for size, *_ in shapes), default=1),
        )


class Demand(NamedTuple):
    """What the feed of a rank must hold: bytes of the largest micro-batch, micro-batches of a
    step, and images of the smallest micro-batch."""

    slot_bytes: int
    at_once: int
    num_images: int


def pad_labels(labels: Sequence[tuple[int, ...]]) -> Tensor:
    """Return (B, K) int64 labels, K the most that one sample has, padded with -1."""
    padded = np.full((len(labels), max(map(len, labels), default=1)), -1, np.int64)
    for row, own in zip(padded, labels, strict=True):
        row[: len(own)] = own
    return torch.from_numpy(padded)


def pack_ops(ops: Sequence[Sequence[tuple[int, float, int, int]]]) -> np.ndarray:
    """Return the ops of B samples as (B, L) of `OP`, L the most that one sample has."""
    most = max(map(len, ops), default=0)
    rows = [[*own, *[NO_OP] * (most - len(own))] for own in ops]
    return np.array([list(map(tuple, row)) for row in rows], OP).reshape(len(ops), most)
