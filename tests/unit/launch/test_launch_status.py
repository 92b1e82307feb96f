"""What is told of a run: one screen, or values for programs, whatever is damaged."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.ledger import Ledger
from launch.run_facts import read_facts
from launch.run_screen import MAX_FAILURES, failures, screen, values
from launch.run_state import judge
from pipeline.run.files import write_json
from pipeline.run.folder import Outcome, RunFolder, Status
from pipeline.run.lease import Lease
from pipeline.run.pace import PaceTable, RankPace, Slowest, write_pace
from pipeline.tracking.spool import Spool
from tests.unit.launch.made_runs import GONE, beat, checkpoint, end, points, text_of


def test_one_screen_tells_what_people_ask(run: RunFolder, lease: Lease) -> None:
    for number in range(7):
        end(run, "crashed", reason=f"cause {number}", step=number)
    attempt = Ledger(run).begin(GONE, 0, "node1", 4)
    checkpoint(run, 4)
    spool = points(run)
    ranks = (RankPace(0, "node0", 0.0, 0.1, 0.1), RankPace(1, "node1", 0.1, 0.1, 0.0))
    worst = Slowest(1, "node1", "data", 2.0)
    write_pace(run, attempt.number, PaceTable(6, ranks, worst))
    spool.close()
    lines = text_of(run).splitlines()
    rows = {line[2:14].strip(): line[14:] for line in lines[1:] if line[2:14].strip()}
    assert lines[0] == "counted  RUNNING"
    assert rows["attempt"].startswith(f"7, local job {GONE} on node1, begun 0 s ago")
    assert rows["step"] == "6 of 10 (60.0%), stage 2 of 2, 32 px"
    assert rows["rate"].startswith("1,234 images/s, ") and rows["rate"].endswith(" left")
    assert rows["checkpoint"] == "step 4, 0 s ago"
    assert rows["evaluation"] == "step 6: top1 0.7500, top5 0.8750; best top1 0.7500 at step 6"
    assert rows["failures"] == "7 in 8 attempts"
    causes = [line.strip() for line in lines if "cause" in line]
    assert [cause[-1] for cause in causes] == list("65432") and len(causes) == MAX_FAILURES
    assert "the slowest is rank 1 on node1, 2.00 times the median, by data" in rows["pace"]
    assert rows["left out"] == "3 bad samples, 1 steps without a finite loss"
    assert rows["mlflow"].endswith("10 events wait in the spool")
    assert str(run.path) in rows["disk"]


def test_steps_of_an_attempt_that_is_gone_are_not_counted(run: RunFolder, lease: Lease) -> None:
    """They will be computed again, from the checkpoint on; their rate is no rate of now."""
    points(run).close()
    checkpoint(run, 4)
    Ledger(run).begin(GONE, 0, "node1", 4)
    facts = read_facts(run.path)
    found = values(facts, judge(facts))
    assert (found["step"], found["total_steps"], found["left_s"]) == (4, 10, None)


def test_an_attempt_that_was_cut_off_is_among_the_failures(run: RunFolder) -> None:
    Ledger(run).begin(GONE, 0, "node1", 4)
    end(run, "done")
    assert [attempt.number for attempt in failures(read_facts(run.path))] == [0]


@pytest.fixture
def full(run: RunFolder, lease: Lease) -> RunFolder:
    """A run whose folder has everything that is looked at."""
    attempt = Ledger(run).begin(GONE, 0, "node1", 4)
    run.write_outcome(attempt.number, Outcome(Status.SAVED, 4))
    checkpoint(run, 4)
    points(run).close()
    beat(run, 0, 1)
    ranks = (RankPace(0, "node0", 0.0, 0.1, 0.1), RankPace(1, "node1", 0.0, 0.1, 0.1))
    write_pace(run, attempt.number, PaceTable(6, ranks, Slowest(1, "node1", "data", 2.0)))
    write_json(run.spool / "mlflow.json", {"uri": "http://here", "run_id": "abc"})
    return run


def told_with(folder: Path, name: Path, content: bytes | None) -> dict[str, Any]:
    """Return what is said of the run in `folder` when file `name` has other content, or none."""
    before = (folder / name).read_bytes()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    facts = read_facts(folder)
    assert screen(facts, judge(facts)).startswith(folder.name)
    (folder / name).write_bytes(before)
    return values(facts, judge(facts))


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"[]", b'{"a": 1}', b"null", b"{", None])
def test_no_missing_or_damaged_file_breaks_it(
    full: RunFolder, tmp_path: Path, damage: bytes | None
) -> None:
    copy = shutil.copytree(full.path, tmp_path / "copy")
    names = [path.relative_to(copy) for path in copy.rglob("*") if path.is_file()]
    assert len(names) >= 9
    for name in names:
        told_with(copy, name, damage)


@pytest.mark.parametrize("has_spool", [True, False])
@pytest.mark.parametrize("wrong", ["x", -1, None, [], {}, [{}], {"a": "b"}])
def test_values_of_another_kind_do_not_break_it(
    full: RunFolder, tmp_path: Path, wrong: object, has_spool: bool
) -> None:
    copy = shutil.copytree(full.path, tmp_path / "copy")
    if not has_spool:
        shutil.rmtree(copy / "spool")
    for path in [*copy.rglob("*.json"), *copy.rglob("*.jsonl")]:
        name = path.relative_to(copy)
        text = path.read_text()
        lines = text.splitlines() if name.suffix == ".jsonl" else [text]
        for number, line in enumerate(lines):
            for key in (whole := json.loads(line)):
                changed = json.dumps({**whole, key: wrong})
                content = "\n".join([*lines[:number], changed, *lines[number + 1 :], ""])
                told_with(copy, name, content.encode())


def test_what_is_missing_is_said(run: RunFolder) -> None:
    end(run, "saved")
    checkpoint(run, 4)
    (run.checkpoints / "step-000000004" / "state.json").write_text("{")
    run.recipe.unlink()
    problems = read_facts(run.path).problems
    assert "recipe.yaml is missing" in problems
    assert any("step-000000004/state.json is missing or damaged" in text for text in problems)


def test_a_name_below_runs_is_enough_and_a_wrong_one_names_those_there(
    run: RunFolder, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(run.path.parent.parent)
    assert main(["status", "counted"]) == 0
    assert capsys.readouterr().out.startswith("counted  NOT STARTED")
    assert main(["status", "counted", "count"]) == 2
    assert "run 'count'" in (error := capsys.readouterr().err) and "counted" in error


def test_programs_get_one_object_a_line(run: RunFolder, capsys) -> None:
    end(run, "crashed", reason="poison")
    assert main(["status", "--json", str(run.path), str(run.path)]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["state"] == second["state"] == "cut off"
    assert first["attempts"][0]["reason"] == "poison" and first["folder"] == str(run.path)


def test_programs_get_numbers_that_json_has_and_the_ranks_by_name(full: RunFolder) -> None:
    spool = Spool(full.spool)
    spool.metrics(7, {"train/loss": math.nan})
    spool.close()
    facts = read_facts(full.path)
    text = json.dumps(values(facts, judge(facts)), allow_nan=False)
    found = json.loads(text)
    assert found["tail"]["values"]["train/loss"] is None
    assert found["pace"]["ranks"][1]["host"] == found["pace"]["worst"]["host"] == "node1"


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "soon"])
def test_a_watch_needs_a_time(run: RunFolder, seconds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["status", f"--watch={seconds}", str(run.path)])


def test_it_is_watched_until_ctrl_c(run: RunFolder, monkeypatch, capsys) -> None:
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("launch.status.time.sleep", sleep)
    assert main(["status", "--watch", "7", str(run.path)]) == 0
    assert waited == [7.0, 7.0]
    assert capsys.readouterr().out.count("counted  NOT STARTED") == 2


def test_it_loads_no_torch_and_answers_in_well_under_a_second(run: RunFolder, repo: Path) -> None:
    points(run).close()
    code = (
        "import sys, time; from launch.__main__ import main; "
        "main(['status', sys.argv[1]]); print('torch' in sys.modules, time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)], cwd=repo, capture_output=True, text=True
    )
    loaded, seconds = done.stdout.splitlines()[-1].split()
    assert loaded == "False" and float(seconds) < 0.8
