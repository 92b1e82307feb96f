"""Who is slow: the arithmetic over made-up times, and the file that keeps it."""

from pathlib import Path

import pytest

from pipeline.run.folder import RunFolder
from pipeline.run.pace import (
    PaceTable,
    RankPace,
    Slowest,
    Verdicts,
    median,
    pace_file,
    read_pace,
    slowest,
    told,
    write_pace,
)


def ranks(*times: tuple[float, float]) -> list[RankPace]:
    """Return ranks with these (data, compute) milliseconds on hosts n0, n1, ..."""
    return [RankPace(r, f"n{r}", d / 1000, c / 1000, 0.0) for r, (d, c) in enumerate(times)]


def blamed(*times: tuple[float, float], meets: bool = False) -> tuple[int, str, float] | None:
    found = slowest(ranks(*times), meets)
    return None if found is None else (found.rank, found.phase, round(found.ratio, 3))


@pytest.mark.parametrize(
    ("values", "middle"),
    [((4.0, 1.0), 1.0), ((1.0, 9.0, 2.0), 2.0), ((4.0, 3.0, 2.0, 1.0), 2.0), ((5.0,), 5.0)],
)
def test_of_an_even_number_the_lower_middle_is_the_norm(
    values: tuple[float, ...], middle: float
) -> None:
    assert median(values) == middle


def test_of_two_ranks_the_slow_one_is_measured_against_the_other() -> None:
    assert blamed((0, 100), (50, 100)) == (1, "data", 1.5)
    assert blamed((0, 150), (0, 100)) == (0, "compute", 1.5)


def test_of_three_ranks_the_median_is_the_norm_and_the_larger_excess_the_phase() -> None:
    assert blamed((10, 100), (30, 200), (0, 100)) == (1, "compute", round(230 / 110, 3))
    assert blamed((10, 100), (200, 110), (0, 100)) == (1, "data", round(310 / 110, 3))


def test_many_times_of_next_to_nothing_is_no_reason_to_blame() -> None:
    """Data that takes 5 ms instead of 1 is five times the median and costs 4 % of the step."""
    found = slowest(ranks((1, 100), (5, 100), (1, 100)))
    assert found is not None and found.ratio == pytest.approx(105 / 101)
    assert Verdicts().take(found) is None


def test_equal_ranks_are_not_blamed() -> None:
    found = slowest(ranks((5, 100), (5, 100), (5, 100)))
    assert found is not None and found.ratio == 1.0
    verdicts = Verdicts()
    assert [verdicts.take(found) for _ in range(5)] == [None] * 5


def test_one_rank_and_times_of_zero_have_nobody_to_blame() -> None:
    assert blamed((500, 100)) is None
    assert blamed((0, 0), (0, 0)) is None
    assert blamed((0, 0), (0, 0), (50, 0)) is None, "the median rank did nothing"


def test_where_ranks_meet_in_the_forward_pass_waiting_is_not_taken_for_computing() -> None:
    """Rank 1's late data make rank 0 wait within its forward pass."""
    assert blamed((0, 150), (50, 100), meets=True) == (1, "data", 1.5)
    assert blamed((0, 150), (0, 150), meets=True) == (0, "compute", 1.0)


def test_a_rank_is_named_after_three_windows_in_a_row_and_no_longer_than_it_is_slow() -> None:
    slow, other, fine = (Slowest(1, "n1", "data", 1.31), Slowest(2, "n2", "compute", 2.0),
                         Slowest(1, "n1", "data", 1.3))  # fmt: skip
    verdicts = Verdicts()
    told_of = [verdicts.take(found) for found in (slow, slow, fine, slow, slow, slow, slow)]
    assert told_of == [None] * 5 + [slow, slow]
    assert [verdicts.take(found) for found in (other, other, other)] == [None, None, other]
    assert verdicts.take(None) is None


def table(worst: Slowest | None, step: int = 150) -> PaceTable:
    return PaceTable(step, tuple(ranks((2, 100), (60, 110))), worst)


def test_people_are_told_once_for_each_change() -> None:
    data, compute = Slowest(1, "n1", "data", 1.67), Slowest(1, "n1", "compute", 1.4)
    line = told(None, table(data))
    assert "rank 1 on n1" in line and "1.7 times" in line
    assert "waits for data 60 ms a step, the median rank 2 ms" in line
    assert told(data, table(data._replace(ratio=1.9))) == ""
    assert "computes 110 ms" in told(data, table(compute))
    assert told(compute, table(None)) == "rank 1 on n1 keeps pace again"
    assert told(None, table(None)) == ""


def test_the_spread_over_ranks_is_what_is_logged() -> None:
    spread = table(None).spread()
    assert spread["data_max_s"] == 0.06 and spread["data_median_s"] == 0.002
    assert spread["compute_max_s"] == 0.11 and spread["compute_median_s"] == 0.1
    assert spread.keys() == {f"{p}_{w}_s" for p in ("data", "compute", "wait")
                             for w in ("max", "median")}  # fmt: skip


@pytest.mark.parametrize("worst", [None, Slowest(1, "n1", "data", 1.67)])
def test_the_file_holds_the_newest_table(tmp_path: Path, worst: Slowest | None) -> None:
    folder = RunFolder(tmp_path)
    assert read_pace(folder, 3) is None
    write_pace(folder, 3, table(None, step=100))
    write_pace(folder, 3, table(worst))
    assert read_pace(folder, 3) == table(worst)
    assert pace_file(folder, 3) == tmp_path / "attempts" / "attempt-0003" / "pace.json"


@pytest.mark.parametrize("text", ["", "[]", '{"step": 1}', '{"step":1,"ranks":[{}],"worst":null}'])
def test_a_damaged_file_is_none(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    write_pace(folder, 0, table(None))
    pace_file(folder, 0).write_text(text)
    assert read_pace(folder, 0) is None
