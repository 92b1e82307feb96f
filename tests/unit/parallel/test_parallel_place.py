"""Ranks from SLURM, torchrun or nothing, and worlds that cannot share the micro-batches."""

import pytest

from pipeline.parallel.place import Place, check_divides, local_ranks, place_from
from pipeline.spec import Misuse

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_LOCALID": "1"}  # fmt: skip


def test_a_slurm_step_gives_the_rank() -> None:
    assert place_from(STEP) == Place(5, 8, 1)


def test_torchrun_gives_the_rank_even_inside_a_slurm_step() -> None:
    env = {**STEP, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert place_from(env) == Place(1, 2, 1)


def test_without_a_launcher_the_process_is_alone() -> None:
    assert place_from({}) == Place(0, 1, 0)
    assert place_from({"SLURM_JOB_ID": "4", "SLURM_PROCID": "0"}) == Place(0, 1, 0)


def test_half_a_launcher_is_refused_by_name() -> None:
    with pytest.raises(Misuse, match="LOCAL_RANK not set"):
        place_from({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(Misuse, match="WORLD_SIZE='two'"):
        place_from({"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"})


def test_a_world_that_does_not_divide_the_micro_batches_is_told_which_would() -> None:
    check_divides(4, [4, 8])
    with pytest.raises(Misuse, match=r"stages\.1\.micro_batches' is 6.*use 1, 2 ranks"):
        check_divides(4, [4, 6])


@pytest.mark.parametrize(
    ("env", "most"),
    [
        ({}, 8),
        ({"LOCAL_WORLD_SIZE": "4"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,3(x10)"}, 3),
        ({"SLURM_STEP_TASKS_PER_NODE": "64"}, 8),
    ],
)
def test_the_ranks_of_a_host_are_what_the_launcher_says(env: dict[str, str], most: int) -> None:
    assert local_ranks(env, 8) == most
