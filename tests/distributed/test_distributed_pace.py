"""Ranks find out together which of them is slow, and in what; it costs one sum for each window."""

import json
from typing import Any

import pytest

from tests.unit.engine.small_training import STEPS

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

EVERY, WORLD = 4, 2
CASES = ("without:ddp", "data:ddp", "compute:ddp", "data:zero1", "data:fsdp")


@pytest.fixture(scope="module")
def outcomes(starters, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each case came to on each rank, from one start of two ranks."""
    folder = tmp_path_factory.mktemp("pace")
    words = ["tests.distributed.pace_worker", str(folder), *CASES]
    ranks = starters.start(words, WORLD, folder / "log", lambda r: {"SLURMD_NODENAME": f"node{r}"})
    ranks.finish()
    return {
        case: [json.loads((folder / case / f"rank{r}.json").read_text()) for r in range(WORLD)]
        for case in CASES
    }


@pytest.mark.parametrize(
    ("case", "rank", "phase"),
    [
        ("data:ddp", 1, "data"),
        ("compute:ddp", 0, "compute"),
        ("data:zero1", 1, "data"),
        ("data:fsdp", 1, "data"),
    ],
)
def test_200_ms_of_one_rank_are_blamed_on_it_and_on_what_it_did(
    outcomes: dict[str, list[Any]], case: str, rank: int, phase: str
) -> None:
    first, second = outcomes[case]
    assert second["tables"] == [], "rank 0 tells"
    tables = first["tables"]
    assert [table["step"] for table in tables] == list(range(EVERY, STEPS + 1, EVERY))
    assert [table["worst"] is None for table in tables[:2]] == [True, True]
    for table in tables[2:]:
        assert table["worst"][:3] == [rank, f"node{rank}", phase]
        assert table["worst"][3] > 1.3
    assert first["read_back"]
    own = tables[-1]["ranks"][rank][2:4]
    assert own[("data", "compute").index(phase)] > 0.2


def test_the_rank_that_is_not_slow_is_seen_to_wait(outcomes: dict[str, list[Any]]) -> None:
    fast, slow = outcomes["data:ddp"][0]["tables"][-1]["ranks"]
    assert fast[4] > slow[4]


def test_it_costs_one_sum_for_each_window_and_one_for_the_hosts(
    outcomes: dict[str, list[Any]],
) -> None:
    for with_it, without in zip(outcomes["data:ddp"], outcomes["without:ddp"], strict=True):
        assert with_it["sums"] - without["sums"] == STEPS // EVERY + 1
