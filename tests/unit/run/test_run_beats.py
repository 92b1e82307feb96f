"""Signs of life: what is written is read again, and the late rank follows from it."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.run.beats import (
    Beat,
    Section,
    attempt_folder,
    beat_file,
    beat_interval_s,
    late,
    read_beats,
    write_beat,
)
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder

NOW_S = 1_000_000.0


def beat(rank: int, section: str = "step", step: int = 7, **values: float) -> Beat:
    base = Beat(rank, f"node{rank}", 100 + rank, Section(section), step, NOW_S - 30, NOW_S - 1, 3)
    return replace(base, **values)  # type: ignore[arg-type]


def test_beats_are_read_by_rank_and_each_is_one_whole_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    beats = [beat(rank) for rank in (11, 2, 0)]
    for one in beats:
        write_beat(folder, one)
    write_beat(folder, newest := replace(beats[0], step=8))
    assert read_beats(folder, 3) == [beats[2], beats[1], newest]
    assert read_beats(folder, 4) == []
    files = sorted(path.name for path in (attempt_folder(folder, 3) / "beats").iterdir())
    assert files == ["rank-00000.json", "rank-00002.json", "rank-00011.json"]


def test_a_beat_has_the_shape_that_others_read(tmp_path: Path) -> None:
    write_beat(RunFolder(tmp_path), beat(2))
    assert read_json(tmp_path / "attempts/attempt-0003/beats/rank-00002.json") == {
        "rank": 2, "host": "node2", "pid": 102, "section": "step", "step": 7,
        "since_s": NOW_S - 30, "beat_s": NOW_S - 1, "attempt": 3, "collectives": -1,
        "every_s": 5.0,
    }  # fmt: skip


def test_a_full_disk_still_takes_signs_of_life(small_disk) -> None:
    disk, fill = small_disk
    folder = RunFolder(disk)
    write_beat(folder, beat(2, collectives=1000))
    fill()
    with pytest.raises(OSError, match="No space left"):
        write_beat(folder, beat(3))  # the first one needs room
    for newest in (beat(2, step=8), beat(2, step=12345678, collectives=10**12)):
        write_beat(folder, newest)
        assert newest in read_beats(folder, 3)


@pytest.mark.parametrize("text", ["", "[]", '{"rank": 1}', '{"section": "lunch"}', '{"x'])
def test_a_file_that_is_no_beat_is_left_out(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    write_beat(folder, beat(0))
    beat_file(folder, 3, 1).write_text(text)
    assert [b.rank for b in read_beats(folder, 3)] == [0]


def test_the_rank_without_a_sign_of_life_is_late_however_far_it_is() -> None:
    beats = [beat(0), beat(1, step=9, beat_s=NOW_S - 40), beat(2, "data", beat_s=NOW_S - 30)]
    assert late(beats, NOW_S) == beats[1]
    assert late(beats, NOW_S, every_s=60) == beats[2], "no beat of theirs was due yet"


@pytest.mark.parametrize(
    ("behind", "others"),
    [
        (("step", 6), ("data", 7)),
        (("data", 7), ("step", 7)),
        (("compile", 7), ("data", 7)),
        (("evaluate", 7), ("checkpoint", 7)),
        (("checkpoint", 7), ("data", 8)),
        (("setup", 0), ("compile", 0)),
        (("checkpoint", 7), ("finish", 7)),
    ],
)
def test_else_the_one_that_is_least_far_is_late(behind, others) -> None:
    beats = [beat(0, *others), beat(1, *behind), beat(2, *others)]
    assert late(beats, NOW_S) == beats[1]


def test_within_a_section_the_number_of_collectives_tells() -> None:
    beats = [beat(0, collectives=41), beat(1, collectives=40), beat(2, collectives=41)]
    assert late(beats, NOW_S) == beats[1]


def test_nobody_is_late_where_all_are_equally_far() -> None:
    assert late([beat(0, collectives=5), beat(1, collectives=5)], NOW_S) is None
    assert late([], NOW_S) is None
    assert late([beat(4)], NOW_S) == beat(4), "a rank alone can only be late itself"


def test_many_ranks_beat_less_often() -> None:
    assert beat_interval_s(5.0, 250) == 5.0
    assert beat_interval_s(5.0, 1000) == 20.0
    many = [beat(rank, beat_s=NOW_S - 25, step=7 if rank == 5 else 8) for rank in range(1000)]
    assert late(many, NOW_S) == many[5], "25 s are no silence there"
