"""How long this rank waits for data, computes, and waits for others; told to all now and then.

Times of `every_steps` steps are added up here and meet in one small sum of host memory, which
travels during the next step. On a GPU they come from events: those of a step are done once its
agreed loss has been read, so nothing here ever waits for the device. The first step of a stage is
left out, as it compiles and fills the loader's pipe.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch

from pipeline.parallel.world import World
from pipeline.run.host import node_name
from pipeline.run.pace import PaceTable, RankPace, Slowest, Verdicts, slowest

HOST_BYTES = 64
"""Longest host name of Linux (HOST_NAME_MAX)."""

Tell = Callable[[PaceTable, Slowest | None], None]
"""Is given each window's table, whose `worst` has lasted, and that window's slowest rank."""

Item = TypeVar("Item")


class Pace:
    """Clocks for the loop to press; on rank 0 `tell` gets each window's table.

    `meets_in_forward`: this strategy's forward passes hold collectives (see `slowest`). Making
    one is a collective: the ranks tell their hosts.
    """

    def __init__(
        self, world: World, every_steps: int, tell: Tell, meets_in_forward: bool = False
    ) -> None:
        self._world, self._every, self._tell = world, every_steps, tell
        self._meets_in_forward = meets_in_forward
        self._hosts = share_hosts(world)
        self._clock: _Clock = _CudaClock() if world.device.type == "cuda" else _HostClock()
        self._verdicts = Verdicts()
        self._sums, self._steps, self._stage = [0.0, 0.0, 0.0], 0, -1
        self._asked_s = self._got_s = 0.0
        self._sent: tuple[int, torch.Tensor, Any] | None = None

    def data(self, steps: Iterator[Item]) -> Iterator[Item]:
        """Yield `steps`, and time how long each one is waited for."""
        while True:
            self._asked_s = time.perf_counter()
            item = next(steps, None)
            if item is None:
                return
            self._got_s = time.perf_counter()
            self._clock.begin()
            yield item
            del item  # or this step's memory would be in use while the next one is asked for

    def forwarded(self) -> None:
        """Say that the last forward pass of a step is done (on a GPU: is queued)."""
        self._clock.forwarded()

    def stepped(self, step: int, stage: int) -> None:
        """Say that step `step` (from 1) of `stage` is done and its agreed loss was read."""
        wall_s = time.perf_counter() - self._asked_s
        data_s, compute_s = self._clock.read(self._got_s - self._asked_s)
        self._clock.end()
        if stage == self._stage:
            own = (data_s, compute_s, max(0.0, wall_s - data_s - compute_s))
            self._sums = [total + value for total, value in zip(self._sums, own, strict=True)]
            self._steps += 1
        self._stage = stage
        self.settle()
        if step % self._every == 0 and self._steps:  # so many on all ranks
            self._send(step)

    def settle(self) -> None:
        """Take in the sum that is on its way, if there is one; all ranks sent theirs a step ago."""
        if self._sent is None:
            return
        (step, table, work), self._sent = self._sent, None
        if work is not None:
            work.wait()
        if not self._world.is_first:
            return
        rows = zip(self._hosts, table.tolist(), strict=True)
        ranks = [RankPace(rank, host, *row) for rank, (host, row) in enumerate(rows)]
        found = slowest(ranks, self._meets_in_forward)
        self._tell(PaceTable(step, tuple(ranks), self._verdicts.take(found)), found)

    def _send(self, step: int) -> None:
        table = torch.zeros(self._world.size, 3, dtype=torch.float64)
        table[self._world.rank] = torch.tensor(self._sums, dtype=torch.float64)
        table /= self._steps
        self._sums, self._steps = [0.0, 0.0, 0.0], 0
        self._sent = step, table, self._world.sum_later(table)


def share_hosts(world: World) -> list[str]:
    """Return the host name of each rank; a collective."""
    letters = torch.zeros(world.size, HOST_BYTES, dtype=torch.uint8)
    own = node_name().encode()[:HOST_BYTES]
    letters[world.rank, : len(own)] = torch.tensor(list(own), dtype=torch.uint8)
    world.sum(letters)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in letters.tolist()]


class _Clock(Protocol):
    """Times a step's data wait and compute."""

    def begin(self) -> None: ...
    def forwarded(self) -> None: ...
    def read(self, asked_s: float) -> tuple[float, float]: ...
    def end(self) -> None: ...


class _HostClock:
    """For CPUs, where a call returns when its work is done."""

    def __init__(self) -> None:
        self._began_s = self._forwarded_s = 0.0

    def begin(self) -> None:
        self._began_s = self._forwarded_s = time.perf_counter()

    def forwarded(self) -> None:
        self._forwarded_s = time.perf_counter()

    def read(self, asked_s: float) -> tuple[float, float]:
        return asked_s, self._forwarded_s - self._began_s

    def end(self) -> None:
        pass


class _CudaClock:
    """For GPUs, which work behind the host: data cost what the GPU was idle for, at most."""

    def __init__(self) -> None:
        self._began, self._forwarded, self._ended = (
            torch.cuda.Event(enable_timing=True) for _ in range(3)
        )
        self._has_ended = False

    def begin(self) -> None:
        self._began.record()

    def forwarded(self) -> None:
        self._forwarded.record()

    def read(self, asked_s: float) -> tuple[float, float]:
        compute_s = self._began.elapsed_time(self._forwarded) / 1000
        if not self._has_ended:
            return asked_s, compute_s
        return min(asked_s, self._ended.elapsed_time(self._began) / 1000), compute_s

    def end(self) -> None:
        self._ended.record()
        self._has_ended = True
