"""The clocks of a rank and the sum that makes a table of them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from pipeline.engine.pace import HOST_BYTES, Pace, share_hosts
from pipeline.parallel.world import World
from pipeline.run.pace import PaceTable, Slowest
from tests.unit.engine.small_training import STEPS, Training

CPU = torch.device("cpu")


@dataclass(frozen=True)
class CountedWorld(World):
    """A world that counts its sums; `others` is what the ranks beside this one add."""

    sums: list[torch.Tensor] = field(default_factory=list)

    def sum(self, tensor: torch.Tensor) -> None:
        self.sums.append(tensor)

    def sum_later(self, tensor: torch.Tensor) -> None:
        self.sums.append(tensor)


@dataclass
class Told:
    """What rank 0 was told."""

    tables: list[PaceTable] = field(default_factory=list)

    def __call__(self, table: PaceTable, found: Slowest | None) -> None:
        self.tables.append(table)


def source(count: int, wait_s: float) -> Iterator[int]:
    for step in range(count):
        time.sleep(wait_s)
        yield step


def drive(pace: Pace, steps: int, data_s: float, compute_s: float) -> None:
    for step in pace.data(source(steps, data_s)):
        time.sleep(compute_s)
        pace.forwarded()
        pace.stepped(step + 1, 0)


def test_each_step_is_split_into_data_compute_and_the_rest() -> None:
    told = Told()
    pace = Pace(World(0, 1, CPU), 3, told)
    for step in pace.data(source(4, 0.1)):
        time.sleep(0.05)
        pace.forwarded()
        time.sleep(0.15)
        pace.stepped(step + 1, 0)
    (table,) = told.tables
    (rank,) = table.ranks
    assert table.step == 3 and table.worst is None
    assert 0.1 <= rank.data_s < 0.15 <= rank.wait_s < 0.3
    assert 0.05 <= rank.compute_s < 0.1


def test_a_table_comes_a_step_after_its_window_or_at_the_end() -> None:
    told = Told()
    pace = Pace(World(0, 1, CPU), 4, told)
    drive(pace, 8, 0.0, 0.0)
    assert [table.step for table in told.tables] == [4]
    pace.settle()
    pace.settle()
    assert [table.step for table in told.tables] == [4, 8]


def test_the_first_step_of_a_stage_is_left_out_as_it_compiles() -> None:
    told = Told()
    pace = Pace(World(0, 1, CPU), 3, told)
    for step in pace.data(source(6, 0.0)):
        time.sleep(0.6 if step in (0, 4) else 0.0)
        pace.forwarded()
        pace.stepped(step + 1, stage=int(step >= 4))
    pace.settle()
    assert [table.ranks[0].compute_s < 0.15 for table in told.tables] == [True, True]


def test_a_window_costs_one_sum_of_three_numbers_a_rank() -> None:
    world, told = CountedWorld(1, 4, CPU), Told()
    pace = Pace(world, 5, told)
    assert [tuple(one.shape) for one in world.sums] == [(4, HOST_BYTES)], "the hosts, once"
    drive(pace, 20, 0.0, 0.001)
    pace.settle()
    assert [tuple(one.shape) for one in world.sums[1:]] == [(4, 3)] * 4
    for table in world.sums[1:]:
        assert table[1].any() and not table[[0, 2, 3]].any(), "the own row alone is filled"
    assert told.tables == [], "rank 0 tells"


def test_it_costs_less_than_a_tenth_of_a_millisecond_a_step() -> None:
    pace = Pace(World(0, 1, CPU), 50, Told())
    best_s = min(_seconds_of(pace, 500) for _ in range(5))
    assert best_s / 500 < 1e-4


def _seconds_of(pace: Pace, steps: int) -> float:
    started = time.process_time()
    for step in pace.data(iter(range(steps))):
        pace.forwarded()
        pace.stepped(step + 1, 0)
    return time.process_time() - started


def test_the_name_that_slurm_gives_a_node_comes_before_the_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node17")
    assert share_hosts(World(0, 1, CPU)) == ["node17"]
    monkeypatch.setenv("SLURMD_NODENAME", "n" * 100)
    assert share_hosts(World(0, 1, CPU)) == ["n" * HOST_BYTES]


def test_training_with_it_is_training_without_it(world: World, tmp_path: Path) -> None:
    """All steps are timed, and the weights are the same to the bit."""
    told, weights = Told(), []
    for name in ("without", "with"):
        one = Training(world, tmp_path / name)
        one.pace = Pace(world, 4, told) if name == "with" else None
        weights.append(one.run().weights)
    assert [table.step for table in told.tables] == list(range(4, STEPS + 1, 4))
    assert all(table.ranks[0].compute_s > 0 for table in told.tables)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_for_the_device() -> None:
    """A second of queued work is neither waited for nor taken for this step's compute."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.device("cuda", torch.cuda.current_device())
    told = Told()
    pace = Pace(World(0, 1, device), 3, told)
    after, read = torch.cuda.Event(), torch.cuda.Event()
    ahead = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in pace.data(source(4, 0.005)):
            torch.cuda._sleep(50_000_000)
            pace.forwarded()
            read.record()
            torch.cuda._sleep(200_000_000)
            after.record()
            while not read.query():  # as the loop does, which reads the agreed loss
                time.sleep(0.001)
            pace.stepped(step + 1, 0)
            ahead.append(not after.query())
        pace.settle()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(ahead)
    (rank,) = told.tables[0].ranks
    assert rank.data_s == pytest.approx(0.0, abs=1e-3), "the GPU had work meanwhile"
    assert 0.01 < rank.compute_s < 0.06
