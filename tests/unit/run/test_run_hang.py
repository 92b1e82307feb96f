"""What a hang leaves: a verdict of one rank, a table for people, stacks."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.run.beats import Beat, Section, write_beat
from pipeline.run.folder import RunFolder
from pipeline.run.hang import (
    TABLE_ROWS,
    claim_hang,
    hang_file,
    hang_text,
    listed,
    read_hang,
    record,
    stacks_file,
    table,
    verdict,
    without_stacks,
)
from pipeline.run.place import OwnPlace, right_now, state_of

NOW_S = 1_000_000.0
NOWHERE = RunFolder(Path("/nowhere"))
LIMIT = "watch.step_s is 10"


def beat(rank: int, section: str = "step", step: int = 7, **values: object) -> Beat:
    base = Beat(rank, f"node{rank}", 100 + rank, Section(section), step, NOW_S - 10, NOW_S, 3)
    return replace(base, **values)  # type: ignore[arg-type]


def said(beats: list[Beat], world: int, folder: RunFolder = NOWHERE) -> tuple[str, Beat | None]:
    return verdict(folder, beats, world, beats[0], 10.0, LIMIT, 5.0)


def test_a_silent_rank_is_named_with_host_section_and_step() -> None:
    beats = [beat(0), beat(1, beat_s=NOW_S - 25), beat(2, beat_s=NOW_S - 24)]
    text, who = said(beats, 3)
    assert who == beats[1]
    assert text == (
        "hang: rank 1 on node1 in section step at step 7: no sign of life for 25 s, nor of rank 2; "
        "rank 0 on node0 in section step at step 7 waited 10 s (watch.step_s is 10)"
    )


def test_of_a_stopped_process_of_this_host_everything_is_known(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    pid = os.fork()
    if not pid:
        OwnPlace(folder, 3, 1).note(Section.DATA, 9, NOW_S - 24.5)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        os.waitpid(pid, os.WUNTRACED)
        old = beat(1, pid=pid, beat_s=NOW_S - 25)
        text, _ = said([beat(0), old], 2, folder)
        assert "no sign of life for 25 s, it is stopped, as by SIGSTOP; rank 0" in text
        new = right_now(folder, old)
        assert (new.section, new.step, new.since_s) == (Section.DATA, 9, NOW_S - 24.5)
        assert new.beat_s == old.beat_s
        other = replace(old, attempt=4)
        assert right_now(folder, other) == other, "a process with that number, but not that rank"
        assert state_of(folder, other) == ""
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_rank_behind_the_others_is_named() -> None:
    text, who = said([beat(0), beat(1, "data", since_s=NOW_S - 14)], 2)
    assert who is not None and who.rank == 1
    assert text.startswith("hang: rank 1 on node1 in section data at step 7: there for 14 s, behin")


def test_the_finder_may_name_itself() -> None:
    text, who = said([beat(0, "data"), beat(1)], 2)
    assert who is not None and who.rank == 0
    assert text == "hang: rank 0 on node0 in section data at step 7: there for 10 s (" + LIMIT + ")"


def test_ranks_that_never_came_are_named_before_all_others() -> None:
    text, who = said([beat(0, "setup", 0), beat(2, "setup", 0, beat_s=NOW_S - 99)], 4)
    assert who is None and text.startswith("hang: rank 1, 3 never gave a sign of life; rank 0 on")


def test_where_all_are_equally_far_the_network_is_to_be_looked_at() -> None:
    text, who = said([beat(0), beat(1)], 2)
    assert who is None and text.startswith(
        "hang: no rank is behind the others: look at the network; "
    )


def test_one_rank_alone_writes_the_verdict(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    beats = [beat(0), beat(1)]
    values = [record(f"hang: {one.rank}", beats[1], one, beats) for one in beats]
    assert claim_hang(folder, 3, values[0], None)
    assert not claim_hang(folder, 3, values[1], None)
    assert read_hang(folder, 3) == values[0]
    assert hang_text(folder, 3) == "hang: 0"
    assert values[0]["late"]["rank"] == 1 and values[0]["found_by"]["rank"] == 0
    assert [b["rank"] for b in values[0]["beats"]] == [0, 1]
    assert [path.name for path in hang_file(folder, 3).parent.iterdir()] == ["hang.json"]


def test_the_verdict_of_an_earlier_process_with_the_same_number_is_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    old = record("old", None, beat(0), [])
    assert claim_hang(folder, 0, old, None)
    new = record("new", None, beat(1), [])
    assert claim_hang(folder, 0, new, read_hang(folder, 0))
    assert hang_text(folder, 0) == "new"


def test_stacks_without_a_verdict_are_a_hang_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert hang_text(folder, 3) == ""
    for rank in (0, 1):
        write_beat(folder, beat(rank))
        stacks_file(folder, 3, rank).parent.mkdir(parents=True, exist_ok=True)
        stacks_file(folder, 3, rank).touch()
    assert hang_text(folder, 3) == "", "they are empty while nothing is wrong"
    stacks_file(folder, 3, 1).write_text("Timeout (0:00:13)!\n")
    assert hang_text(folder, 3) == (
        "hang: rank 1 on node1 in section step at step 7 when last seen: none of its threads could "
        "run, see its stacks"
    )


def test_what_an_earlier_process_with_the_same_number_left_is_no_hang_of_this_one(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    write_beat(folder, beat(0))
    stacks_file(folder, 3, 0).parent.mkdir(parents=True)
    stacks_file(folder, 3, 0).write_text("Thread")
    os.utime(stacks_file(folder, 3, 0), (NOW_S, NOW_S))
    claim_hang(folder, 3, record("hang: 0", None, beat(0), []), None)
    assert hang_text(folder, 3, since_s=NOW_S) == "hang: 0"
    assert hang_text(folder, 3, since_s=NOW_S + 1) == ""


def test_who_did_not_dump_is_told_with_what_is_known(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    stacks_file(folder, 3, 0).parent.mkdir(parents=True)
    stacks_file(folder, 3, 0).write_text("Thread")
    found = without_stacks(folder, 3, [0, 1, 2], [beat(0), beat(1)])
    assert [(item["rank"], item["host"]) for item in found] == [(1, "node1"), (2, "")]
    assert "stopped" in found[0]["why"]


@pytest.mark.parametrize("more", [0, 5])
def test_the_table_shows_the_least_far_first_and_not_all_of_many(more: int) -> None:
    beats = [beat(rank) for rank in range(TABLE_ROWS + more)]
    beats[9] = beat(9, "data", since_s=NOW_S - 42, beat_s=NOW_S - 3.25)
    lines = table(beats, NOW_S).splitlines()
    assert lines[1].split() == ["9", "data", "7", "42", "s", "3.2", "s", "node9"]
    assert len(lines) == 1 + TABLE_ROWS + bool(more)
    assert (f"and {more} more ranks" in lines[-1]) == bool(more)


def test_a_long_list_of_ranks_is_cut() -> None:
    assert listed(range(3)) == "0, 1, 2"
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
