"""A training records how fast its ranks are: a file for `status`, points for the tracker."""

from pathlib import Path

from pipeline.run.folder import RunFolder
from pipeline.run.pace import read_pace
from pipeline.tracking.events import read_events
from tests.unit.jobs.conftest import train


def test_a_training_keeps_its_newest_table_and_logs_all(
    low_digits: Path, tmp_path: Path, monkeypatch, repo: Path
) -> None:
    monkeypatch.chdir(repo)
    assert train(low_digits, tmp_path, "name=paced", "watch.pace_every_steps=3") == 0
    folder = RunFolder(tmp_path / "paced")
    table = read_pace(folder, 0)
    assert table is not None and (table.step, table.worst) == (6, None)
    assert [rank.rank for rank in table.ranks] == [0] and table.ranks[0].compute_s > 0
    points = {
        event.values["step"]: event.values["values"]
        for event in read_events(folder.spool)
        if event.kind == "metrics" and "pace/compute_max_s" in event.values["values"]
    }
    assert points.keys() == {3, 6}
    assert float(points[6]["pace/compute_max_s"]) == table.ranks[0].compute_s


def test_it_can_be_left_out(low_digits: Path, tmp_path: Path, monkeypatch, repo: Path) -> None:
    monkeypatch.chdir(repo)
    assert train(low_digits, tmp_path, "name=plain", "watch.pace_every_steps=0") == 0
    assert read_pace(RunFolder(tmp_path / "plain"), 0) is None
