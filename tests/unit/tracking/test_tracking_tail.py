"""The end of a spool is found without reading all of it, and says what the whole would say."""

import time
from pathlib import Path

import pytest

from pipeline.tracking import events
from pipeline.tracking.position import Position
from pipeline.tracking.spool import Spool
from pipeline.tracking.tail import NUM_POINTS, Tail, read_tail


def write_steps(folder: Path, first: int, last: int, images_s: float = 100.0) -> None:
    spool = Spool(folder)
    for step in range(first, last + 1):
        spool.metrics(step, {"train/loss": 1 / step, "speed/images_per_s": images_s})
    spool.close()


def tail(folder: Path) -> Tail:
    found = read_tail(folder)
    assert found is not None
    return found


def test_no_spool_and_an_empty_one_are_no_error(tmp_path: Path) -> None:
    assert read_tail(tmp_path) is None
    (tmp_path / events.FILE).touch()
    assert read_tail(tmp_path) == Tail()


def test_the_newest_point_and_the_newest_score_are_found(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.tags({"plan.steps": "90", "world": "4"})
    for step in range(1, 8):
        spool.metrics(step, {"train/loss": 1 / step, "speed/images_per_s": 10.0 * step})
        if step % 3 == 0:
            spool.metrics(step, {"eval/top1": step / 10, "eval/top5": 1.0})
    spool.metrics(7, {"system/cpu_percent": 99.0})
    spool.tags({"world": "2"})
    found = tail(tmp_path)
    assert (found.step, found.values["train/loss"]) == (7, 1 / 7)
    assert (found.scored_step, found.scores) == (6, {"eval/top1": 0.6, "eval/top5": 1.0})
    assert found.best == (0.6, 6)
    assert found.tags["plan.steps"] == "90" and found.tags["world"] == "2"
    assert found.images_s == 40.0
    assert found.last_s == pytest.approx(time.time(), abs=5)


def test_points_that_a_rewind_made_void_do_not_count(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 9)
    spool = Spool(tmp_path)
    spool.metrics(8, {"eval/top1": 0.5})
    spool.rewind(5)
    assert tail(tmp_path).step == 5
    assert tail(tmp_path).scored_step == -1
    spool.metrics(6, {"train/loss": 0.25})
    assert (tail(tmp_path).step, tail(tmp_path).values["train/loss"]) == (6, 0.25)


def test_the_same_as_the_whole_history_says(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 9)
    spool = Spool(tmp_path)
    spool.rewind(3)
    spool.metrics(4, {"train/loss": 7.0})
    newest = events.history(tmp_path)["train/loss"][-1]
    assert (tail(tmp_path).step, tail(tmp_path).values["train/loss"]) == (newest.step, 7.0)


def test_the_rate_is_that_of_the_newest_attempt(tmp_path: Path) -> None:
    lines = []
    for n, (kind, at_ms, values) in enumerate(
        [("attempt", 0, {})]
        + [("metrics", 1000 * s, {"step": s, "values": {"train/loss": 1}}) for s in range(1, 10)]
        + [("attempt", 3_600_000, {}), ("rewind", 3_600_000, {"step": 5})]
        + [
            ("metrics", 3_600_000 + 500 * s, {"step": s, "values": {"train/loss": 1}})
            for s in range(6, 16)
        ]
    ):
        lines.append(events.encode(n, kind, at_ms, values))
    path = tmp_path / events.FILE
    path.write_bytes(b"".join(lines))
    assert tail(tmp_path).steps_s == 2.0
    path.write_bytes(b"".join(lines[:-9]))
    assert tail(tmp_path).step == 6 and tail(tmp_path).steps_s is None, "one point has no rate"


def test_a_line_that_is_being_written_and_damage_are_passed_over(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 3)
    with open(tmp_path / events.FILE, "ab") as file:
        file.write(
            b'\xff\x00 "train/loss" nonsense\n{"n":9,"k":"metrics","t":1,"v":{"step":9,"train/loss'
        )
    assert tail(tmp_path).step == 3


def test_what_the_sender_has_still_to_send_is_counted(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 3)
    assert tail(tmp_path).unsent == 5, "the run and the attempt too"
    third = list(events.read_events(tmp_path))[2]
    Position(offset=third.end).save(tmp_path)
    assert tail(tmp_path).unsent == 2


def test_a_hundred_thousand_steps_are_answered_at_once(tmp_path: Path) -> None:
    line = events.encode(0, "metrics", 5, {"step": 1, "values": {"train/loss": 1.0, "x" * 300: 1}})
    (tmp_path / events.FILE).write_bytes(line * 100_000)
    started = time.process_time()
    found = tail(tmp_path)
    assert time.process_time() - started < 0.5
    assert found.unsent == 100_000 and NUM_POINTS < 100_000


def test_what_a_writer_adds_that_was_taken_for_dead_does_not_count(tmp_path: Path) -> None:
    zombie = Spool(tmp_path)
    zombie.metrics(1, {"train/loss": 1.0, "eval/top1": 0.1})
    taker = Spool(tmp_path)
    taker.metrics(2, {"train/loss": 0.5})
    zombie.metrics(3, {"train/loss": 99.0, "eval/top1": 0.9})
    zombie.rewind(0)
    zombie.finish("FAILED")
    found = tail(tmp_path)
    assert (found.step, found.values["train/loss"]) == (2, 0.5)
    assert (found.best, found.unsent) == ((0.1, 1), 5)
    Position(offset=(tmp_path / events.FILE).stat().st_size, writer=2).save(tmp_path)
    taker.metrics(4, {"train/loss": 0.4})
    zombie.metrics(5, {"train/loss": 99.0})
    assert tail(tmp_path).unsent == 1
