"""The spool: whole lines, at once, whatever the disk or a kill does."""

import errno
import json
import math
import os
import threading
import time
from pathlib import Path

import pytest

from pipeline.tracking import events
from pipeline.tracking.events import history, read_events
from pipeline.tracking.spool import Spool


def kinds(folder: Path) -> list[str]:
    return [event.kind for event in read_events(folder)]


def test_each_event_is_one_json_line_with_a_running_number(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.metrics(3, {"train/loss": 2.5})
    spool.finish("FINISHED")
    lines = (tmp_path / events.FILE).read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [0, 1, 2, 3]
    assert kinds(tmp_path) == ["run", "attempt", "metrics", "finish"]


def test_an_attempt_goes_on_where_the_last_one_was_cut(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    first.metrics(1, {"loss": 1.0})
    first.close()
    with open(tmp_path / events.FILE, "ab") as file:
        file.write(b'{"n":3,"k":"metr')  # killed in the middle of a line
    second = Spool(tmp_path)
    second.metrics(2, {"loss": 0.5})
    numbers = [event.n for event in read_events(tmp_path)]
    assert numbers == [0, 1, 2, 3, 4]
    assert kinds(tmp_path).count("run") == 1
    assert [p.step for p in history(tmp_path)["loss"]] == [1, 2]


def test_readers_see_no_half_line_and_pass_over_damage(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.metrics(1, {"loss": 1.0})
    with open(tmp_path / events.FILE, "ab") as file:
        file.write(b'not json\n{"n":1}\n[]\n{"n":9,"k":"unknown","t":1,"v":{}}\n{"n":4,"k":"me')
    assert kinds(tmp_path) == ["run", "attempt", "metrics"]
    offset = [event.end for event in read_events(tmp_path)][1]
    assert [event.kind for event in read_events(tmp_path, offset)] == ["metrics"]


def test_nan_and_infinity_survive_as_valid_json(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    for line in (tmp_path / events.FILE).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    values = {key: points[0].value for key, points in history(tmp_path).items()}
    assert math.isnan(values["a"]) and values["b"] == math.inf and values["c"] == -math.inf


def test_history_has_each_step_once_after_a_rewind(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in (1, 2, 3, 4):
        spool.metrics(step, {"loss": step})
    spool.rewind(2)
    assert [p.step for p in history(tmp_path)["loss"]] == [1, 2]
    spool.metrics(3, {"loss": 30})
    assert [(p.step, p.value) for p in history(tmp_path)["loss"]] == [(1, 1), (2, 2), (3, 30)]


def test_a_full_disk_costs_events_but_never_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path)
    real_write = os.write

    def half(file: int, data: bytes) -> int:
        return real_write(file, data[: len(data) // 2])

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for write in (half, full):
        monkeypatch.setattr(os, "write", write)
        spool.metrics(1, {"loss": 1.0})
    monkeypatch.setattr(os, "write", real_write)
    spool.metrics(2, {"loss": 2.0})
    assert spool.lost == 2 and caplog.text.count("metrics are lost") == 1
    assert [p.step for p in history(tmp_path)["loss"]] == [2]
    assert [event.n for event in read_events(tmp_path)] == [0, 1, 2]


def test_recording_after_close_is_harmless(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.close()
    spool.close()
    spool.metrics(1, {"loss": 1.0})
    spool.sync()
    assert spool.lost == 1


def test_threads_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    spool = Spool(tmp_path)

    def write(key: str) -> None:
        for step in range(200):
            spool.metrics(step, {key: step, "filler" * 20: 1.0})

    threads = [threading.Thread(target=write, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.n for event in read_events(tmp_path)] == list(range(802))
    assert all(len(history(tmp_path)[f"t{i}"]) == 200 for i in range(4))


def test_an_event_takes_well_under_a_millisecond(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    values = {f"metric{i}": 0.1 * i for i in range(12)}
    took = []
    for step in range(300):
        start = time.perf_counter()
        spool.metrics(step, values)
        took.append(time.perf_counter() - start)
    assert sorted(took)[150] < 1e-3


def test_nested_settings_become_dotted_names(tmp_path: Path) -> None:
    Spool(tmp_path).params(
        {"lr": {"peak": 0.1}, "stages": [{"px": 32}, {"px": 64}], "list": [1, 2], "init": None}
    )
    (event,) = (e for e in read_events(tmp_path) if e.kind == "params")
    assert event.values == {
        "lr.peak": "0.1", "stages.0.px": "32", "stages.1.px": "64", "list": "[1, 2]", "init": "None"
    }  # fmt: skip


def test_a_missing_or_huge_artifact_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.artifact(tmp_path / "nowhere.txt")
    huge = tmp_path / "huge.bin"
    with open(huge, "wb") as file:
        file.truncate(65 * 2**20)
    spool.artifact(huge)
    assert "artifact" not in kinds(tmp_path / "spool")
    assert "nowhere.txt" in caplog.text and "huge.bin" in caplog.text


def test_the_end_is_the_last_event_of_an_attempt(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.finish("SCHEDULED")
    spool.metrics(1, {"system/cpu_percent": 3.0})
    assert spool.lost == 0 and kinds(tmp_path) == ["run", "attempt", "finish"]
    Spool(tmp_path).metrics(1, {"loss": 1.0})
    assert kinds(tmp_path)[3:] == ["attempt", "metrics"]


def test_an_unknown_status_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'done'.*FINISHED.*SCHEDULED"):
        Spool(tmp_path).finish("done")


def test_what_an_earlier_writer_adds_after_a_later_one_began_is_void(tmp_path: Path) -> None:
    zombie = Spool(tmp_path)
    zombie.metrics(1, {"loss": 1.0})
    taker = Spool(tmp_path)
    zombie.metrics(2, {"loss": 99.0})
    taker.metrics(2, {"loss": 0.5})
    zombie.rewind(0)
    zombie.finish("FAILED")
    taker.metrics(3, {"loss": 0.25})
    assert kinds(tmp_path) == ["run", "attempt", "metrics", "attempt", "metrics", "metrics"]
    assert [point.value for point in history(tmp_path)["loss"]] == [1.0, 0.5, 0.25]
    third = Spool(tmp_path)
    taker.finish("FINISHED")
    third.finish("FINISHED")
    assert kinds(tmp_path)[-2:] == ["attempt", "finish"]


def test_a_spool_of_old_whose_lines_name_no_writer_is_continued(tmp_path: Path) -> None:
    lines = [
        events.encode(0, "run", 1, {}),
        events.encode(1, "metrics", 1, {"step": 1, "values": {"loss": 1}}),
    ]
    old = [json.loads(line) for line in lines]
    for line in old:
        del line["w"]
    (tmp_path / events.FILE).write_text("".join(json.dumps(line) + "\n" for line in old))
    Spool(tmp_path).metrics(2, {"loss": 0.5})
    assert [point.step for point in history(tmp_path)["loss"]] == [1, 2]
