"""Points are drawn over all stages, attempts are read from a spool, and the verdict sees a loss."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.soak.draw import APART_STEPS, KINDS, MARGIN_STEPS, SETTINGS, Point, draw
from tests.soak.interrupt import Cost, Hit, cost
from tests.soak.legs import Legs
from tests.soak.points import SAVE_EVERY, STAGES, STEPS, _verdict, main
from tests.soak.tally import Place, Result, cost_lines, excess, restart_line, summary
from tests.soak.throws import KINDS as THROWN


def stage_of(step: int) -> int:
    return step * STAGES // STEPS


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("seed", range(20))
def test_every_training_meets_every_kind_and_all_stages_are_met(seed: int, rounds: int) -> None:
    drawn = draw(random.Random(seed), rounds, STEPS, stage_of)
    assert drawn == draw(random.Random(seed), rounds, STEPS, stage_of)
    assert len(drawn) == rounds
    for points in drawn:
        assert {point.kind for point in points} == set(KINDS) <= set(THROWN)
        steps = [point.step for point in points]
        gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)]
        assert (
            min(gaps) >= APART_STEPS
            and steps[0] >= APART_STEPS
            and steps[-1] < STEPS - MARGIN_STEPS
        )
    met = Counter(stage_of(point.step) for points in drawn for point in points)
    assert met.keys() == set(range(STAGES))


def test_points_are_spread_over_the_steps_and_orders_of_kinds_differ() -> None:
    drawn = draw(random.Random(0), 200, STEPS, stage_of)
    assert len({point.step for points in drawn for point in points}) > 100
    assert len({tuple(point.kind for point in points) for points in drawn}) > 50
    met = Counter(stage_of(point.step) for points in drawn for point in points)
    assert min(met.values()) > 150, met


def test_the_four_settings_are_those_of_the_goal() -> None:
    found = {(setting.ranks, setting.strategy.count("zero")) for setting in SETTINGS.values()}
    assert found == {(2, 0), (4, 0), (2, 1), (4, 1)}


class Spool:
    """A spool as a training writes it, with times in s."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0

    def write(self, kind: str, time_s: float, **values: object) -> None:
        event = {"n": self._count, "k": kind, "t": round(time_s * 1000), "v": values}
        with open(self.folder / "events.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")
        self._count += 1

    def attempt(self, number: int, steps: range, began_s: float) -> None:
        self.write("attempt", began_s, attempt=number)
        for step in steps:
            self.write("metrics", began_s + step / 10, step=step, values={"train/loss": 1.0})
        self.write("metrics", began_s, step=500, values={"eval/top1": 1.0})


def test_work_done_again_and_time_to_the_next_step_come_from_the_spool(tmp_path: Path) -> None:
    spool, legs = Spool(tmp_path), Legs(tmp_path)
    assert legs.read_on() is None
    spool.attempt(0, range(1, 48), 100.0)
    leg = legs.read_on()
    assert leg is not None and (leg.attempt, leg.first, leg.last) == (0, 1, 47)
    spool.attempt(1, range(0), 110.0)  # ended before its first step
    leg = legs.read_on()
    assert leg is not None and leg.attempt == 0, "an attempt without a step is none to hit"
    spool.attempt(2, range(41, 60), 120.0)
    spool.attempt(3, range(60, 62), 130.0)
    legs.read_on()
    first, second, last = (cost(Hit(Point("kill", 45), n, 105.0), legs) for n in (0, 2, 3))
    assert first is not None and second is not None
    assert (first.step, first.again_steps, round(first.back_s, 3)) == (47, 7, 19.1)
    assert (second.step, second.again_steps, round(second.back_s, 3)) == (59, 0, 31.0)
    assert last is None, "no attempt came after it"


def result(kind: str, again: int = 0, stage: int = 1, is_same: bool = True) -> Result:
    place = Place(stage, 3, 128, 1438)
    return Result("ddp-2", Point(kind, 40), Cost(41, again, 10.0 + again), place, is_same)


def test_the_table_counts_kinds_stages_and_points_in_mid_epoch() -> None:
    results = [result(kind, stage=stage) for stage in (1, 2, 3, 4) for kind in KINDS]
    expected = "20 of 20 (kill 4, term 4, usr2 4, requeue 4, preempt 4), stages 1-4: 5, 5, 5, 5"
    assert expected in summary("ddp-2", results, STAGES)
    assert "20 in mid-epoch" in summary("ddp-2", results, STAGES)
    assert "same bits" in results[0].line() and "stage 1" in results[0].line()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (result("kill", is_same=False), "NOT THE SAME"),
        (Result("ddp-2", Point("kill", 40), None, None, True), "interrupted nothing"),
    ],
)
def test_a_point_that_left_a_trace_or_hit_nothing_does_not_count(bad: Result, words: str) -> None:
    assert not bad.is_good and words in bad.line()
    results = [bad, result("kill"), result("term")]
    assert "2 of 3 (kill 1, term 1, usr2 0" in summary("ddp-2", results, STAGES)


def test_a_kill_may_cost_an_interval_and_a_signal_nothing() -> None:
    good = [result("kill", SAVE_EVERY), *(result(kind) for kind in KINDS)]
    assert not excess(good, SAVE_EVERY)
    found = excess([*good, result("kill", 2 * SAVE_EVERY), result("term", 1)], SAVE_EVERY)
    assert len(found) == 2 and "kill at step 41 cost 40 steps" in found[0] and "term" in found[1]


def test_costs_are_told_by_kind_and_restarts_against_their_goal() -> None:
    results = [result("kill", again) for again in (2, 4, 15)] + [result("usr2")]
    head, names, kill, usr2 = cost_lines(results, SAVE_EVERY)
    assert kill.split() == ["kill", "3", "4.0", "15", "14.0", "25.0"]
    assert usr2.split() == ["usr2", "1", "0.0", "0", "10.0", "10.0"]
    assert "every 20" in head and "worst" in names
    assert "median 14.0 s, worst 25.0 s, 2 of 3 within 20 s" in restart_line(results)
    assert restart_line([result("usr2")]) == "no restart inside the allocation"


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--settings", "ddp-2", "ddp-3"], "--settings ddp-3: choose from ddp-2, zero1-2"),
        (["--settings", ""], "name at least one of"),
        (["--rounds", "0"], "--rounds 0: give 1 or more"),
        (["--seed", "x"], "--seed"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(
    words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert refused.value.code == 2
    assert remedy in capsys.readouterr().err


def test_the_verdict_names_what_interrupted_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    results = [result(kind) for kind in KINDS]
    assert _verdict({"ddp-2": results}, []) == 0
    assert "passed" in capsys.readouterr().out
    nothing = Result("ddp-2", Point("term", 77), None, None, True)
    for found, problems in (([*results, nothing], []), (results, ["FAILED; see x.log"])):
        assert _verdict({"ddp-2": found}, problems) == 1
        said = capsys.readouterr().out
        assert "FAILED" in said and ("term     drawn at step 77" in said or "see x.log" in said)
