"""Which rank this process is, as the launcher told it.

Ranks come from SLURM's variables inside a job step, from torchrun's otherwise; without either the
world is this process alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.spec import Misuse


@dataclass(frozen=True)
class Place:
    """Rank, world size and rank on this host, as the launcher told them."""

    rank: int
    size: int
    local_rank: int


def place_from(env: Mapping[str, str]) -> Place:
    """Read the place from SLURM's step variables, else from torchrun's, else be alone.

    Raises:
        Misuse: only some of the variables are there, or one is not a number.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    in_step = "SLURM_STEP_ID" in env and "SLURM_PROCID" in env
    if in_step and "RANK" not in env:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    elif "RANK" not in env and "WORLD_SIZE" not in env:
        return Place(0, 1, 0)
    missing = [name for name in names if name not in env]
    if missing:
        raise Misuse(
            f"environment: {', '.join(missing)} not set although {names[0]} or {names[1]} is; "
            "start ranks with srun, torchrun or `python -m launch local`"
        )
    try:
        rank, size, local_rank = (int(env[name]) for name in names)
    except ValueError:
        values = ", ".join(f"{name}={env[name]!r}" for name in names)
        raise Misuse(f"environment: {values}: expected whole numbers") from None
    return Place(rank, size, local_rank)


def local_ranks(env: Mapping[str, str], size: int) -> int:
    """Return the most ranks that a host of this step has; all of them where nobody says."""
    told = env.get("LOCAL_WORLD_SIZE") or env.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts = [int(number) for number in re.findall(r"(?<!x)\b\d+", told)]  # "4(x3),2"
    return min(max(counts, default=size), size)


def check_divides(world_size: int, micro_batches: list[int]) -> None:
    """Refuse a world that cannot share every stage's micro-batches equally.

    Raises:
        Misuse: names the stage, both numbers and the worlds that would do.
    """
    for stage, count in enumerate(micro_batches):
        if count % world_size:
            fitting = [n for n in range(1, count + 1) if all(m % n == 0 for m in micro_batches)]
            raise Misuse(
                f"field 'stages.{stage}.micro_batches' is {count}, which {world_size} ranks "
                f"cannot share equally; use {', '.join(map(str, fitting))} ranks, or set "
                f"stages.micro_batches to a multiple of {world_size}"
            )
