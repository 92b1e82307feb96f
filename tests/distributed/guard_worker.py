"""One rank of the guards' tests: trains with losses that are spoilt on one rank.

    RANK=0 WORLD_SIZE=2 python -m tests.distributed.guard_worker FOLDER CASE:STRATEGY...

Everything runs in one process group, and what came out of each is written from every rank to
FOLDER/CASE:STRATEGY; the tests judge it.
"""

import json
import math
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.engine.settings import GuardSpec
from pipeline.parallel.settings import DdpSpec, DeepspeedSpec, FsdpSpec
from pipeline.parallel.world import World, open_world
from pipeline.spec import Failure
from tests.unit.engine.small_training import Training

BAD_RANK = 1
STRATEGIES = {
    "ddp": DdpSpec(),
    "zero1": DeepspeedSpec(zero_stage=1),
    "zero3": DeepspeedSpec(zero_stage=3),
    "zero2-offload": DeepspeedSpec(zero_stage=2, offload_optimizer=True),
    "fsdp": FsdpSpec(),
}


def main(world: World, folder: Path, case: str, strategy: str) -> None:
    """Run one case and write its outcome."""
    folder.mkdir(exist_ok=True)
    guard = GuardSpec(max_bad_steps=1)
    one = Training(world, folder / "checkpoints", STRATEGIES[strategy], guard)
    one.spoiler.index = BAD_RANK  # its micro-batch alone, whoever works on it
    if case == "skip":
        one.spoiler.value = {2: math.nan, 5: math.inf}
    elif case == "rollback":
        one.spoiler.value = {6: math.nan, 7: math.nan, 12: math.nan}
    elif case == "drift":
        one.before_step = partial(drift, one)
    error, tensors = "", {}
    try:
        state = one.run()
        tensors = {f"{part}:{name}": tensor.detach().cpu().clone().contiguous()
                   for part, values in state.tensors().items()
                   for name, tensor in values.items()}  # fmt: skip
    except Failure as failure:
        error = str(failure)
    save_file(tensors, folder / f"rank{world.rank}.safetensors")
    outcome = {
        "error": error,
        "left_out": [report.step for report in one.reports if report.left_out],
        "batches": [batch for batch, _ in one.seen],
        "windows": [window for _, window in one.told],
    }
    (folder / f"rank{world.rank}.json").write_text(json.dumps(outcome))


def drift(training: Training, batch: int) -> None:
    """Flip one bit of one weight, once, on one rank."""
    if batch == 5 and training.world.rank == BAD_RANK:
        weight = training.stepper.model.classifier.weight.detach()
        weight.view(torch.int32)[0, 0] ^= 1 << 12


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = open_world(60)
    for job in sys.argv[2:]:
        main(ranks, Path(sys.argv[1]) / job, *job.split(":"))
    ranks.close()
