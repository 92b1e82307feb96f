"""One rank of the stragglers' tests: trains while one rank is slowed down.

    RANK=0 WORLD_SIZE=2 python -m tests.distributed.pace_worker FOLDER CASE:STRATEGY...

What each case came to is written from every rank to FOLDER/CASE:STRATEGY; the tests judge it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.engine.pace import Pace
from pipeline.parallel.settings import meets_in_forward
from pipeline.parallel.world import World, open_world
from pipeline.run.folder import RunFolder
from pipeline.run.pace import PaceTable, Slowest, read_pace, write_pace
from tests.distributed.guard_worker import STRATEGIES
from tests.unit.engine.small_training import Spoiler, Training

EVERY, SLEEP_S = 4, 0.2
SLOW = {"data": 1, "compute": 0}
"""The rank that is slow in each case."""


class SlowLoss(Spoiler):
    """The loss, late."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        time.sleep(SLEEP_S)
        return super().__call__(logits, targets)


def main(world: World, folder: Path, case: str, strategy: str) -> None:
    """Run one case and write what it came to."""
    folder.mkdir(exist_ok=True)
    one = Training(world, folder / "checkpoints", STRATEGIES[strategy])
    told: list[tuple[PaceTable, Slowest | None]] = []
    calls = _count_sums()
    if case != "without":
        one.pace = Pace(world, EVERY, lambda *what: told.append(what),
                        meets_in_forward(STRATEGIES[strategy]))  # fmt: skip
    if world.rank == SLOW.get(case):
        if case == "compute":
            late = SlowLoss()
            one.stepper = _with_loss(one, late)
            one.spoiler = late
        else:
            one.before_step = lambda batch: time.sleep(SLEEP_S)
    one.run()
    run = RunFolder(folder)
    if told:
        write_pace(run, 0, told[-1][0])
    tables = [
        {"step": table.step, "worst": table.worst, "found": found, "ranks": table.ranks}
        for table, found in told
    ]
    read_back = read_pace(run, 0) == told[-1][0] if told else None
    outcome = {"sums": calls[0], "tables": tables, "read_back": read_back}
    (folder / f"rank{world.rank}.json").write_text(json.dumps(outcome))


def _with_loss(one: Training, loss: Spoiler) -> Any:
    from dataclasses import replace

    return replace(one.stepper, loss=loss)


def _count_sums() -> list[int]:
    """Return a list whose one number is how many all-reduces were started from here on."""
    calls, plain = [0], _PLAIN

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return plain(*args, **kwargs)

    dist.all_reduce = counted
    return calls


_PLAIN = dist.all_reduce

if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = open_world(60)
    for job in sys.argv[2:]:
        main(ranks, Path(sys.argv[1]) / job, *job.split(":"))
    ranks.close()
