"""Every point once in MLflow, whatever dies between the spool and there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.folder import RunFolder
from pipeline.tracking import position as position_file
from pipeline.tracking.client import Refused, connect
from pipeline.tracking.delivery import TARGET, Delivery, mlflow_run_id
from pipeline.tracking.position import Position, unsent
from pipeline.tracking.sender import sync
from pipeline.tracking.settings import TrackingSpec
from pipeline.tracking.spool import Spool

Sent = Callable[[TrackingSpec, RunFolder], dict[str, list[tuple[int, float]]]]


@pytest.fixture
def spool(run: RunFolder) -> Spool:
    return Spool(run.spool)


def mlflow_run(spec: TrackingSpec, run: RunFolder) -> Any:
    assert spec.uri is not None
    run_id = mlflow_run_id(run.spool)
    assert run_id is not None
    return connect(spec.uri).get_run(run_id)


def num_runs(spec: TrackingSpec) -> int:
    assert spec.uri is not None
    client = connect(spec.uri)
    ids = [e.experiment_id for e in client.search_experiments()]
    return len(client.search_runs(ids))


def test_a_run_arrives_with_params_tags_metrics_artifacts_and_status(
    spool: Spool, run: RunFolder, spec: TrackingSpec, tmp_path: Path, sent: Sent
) -> None:
    (run.path / "plan.txt").write_text("stage 0")
    spool.params({"lr": {"peak": 0.1}, **{f"p{i}": "x" * 7000 for i in range(150)}})
    spool.tags({"commit": "abc", "long": "y" * 9000})
    for step in range(0, 20, 2):
        spool.metrics(step, {"train/loss": 1 / (step + 1), "stage/index": step // 10})
    spool.artifact(run.path / "plan.txt")
    spool.finish("FINISHED")
    assert sync(run, spec) == 0

    stored = mlflow_run(spec, run)
    assert stored.info.status == "FINISHED" and stored.info.run_name == "demo"
    assert stored.data.params["lr.peak"] == "0.1" and len(stored.data.params) == 151
    assert stored.data.tags["commit"] == "abc" and stored.data.tags["attempt"] == "0"
    assert sent(spec, run)["train/loss"] == [(s, 1 / (s + 1)) for s in range(0, 20, 2)]
    file = tmp_path / "mlartifacts" / stored.info.run_id / "artifacts" / "plan.txt"
    assert file.read_text() == "stage 0"


def test_sending_again_from_the_start_adds_nothing(
    spool: Spool, run: RunFolder, spec: TrackingSpec, sent: Sent
) -> None:
    for step in range(5):
        spool.metrics(step, {"loss": step})
    sync(run, spec)
    (run.spool / position_file.FILE).unlink()
    spool.metrics(5, {"loss": 5})
    assert sync(run, spec) == 0
    assert sent(spec, run)["loss"] == [(step, float(step)) for step in range(6)]


def test_a_kill_between_sending_and_noting_it_doubles_nothing(
    spool: Spool, run: RunFolder, spec: TrackingSpec, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.metrics(1, {"loss": 1.0})
    sync(run, spec)
    spool.metrics(2, {"loss": 2.0})
    real = Position.save

    def killed(self: Position, folder: Path) -> None:
        if not self.pending:
            raise KeyboardInterrupt
        real(self, folder)

    monkeypatch.setattr(Position, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        Delivery(run.spool).deliver()
    monkeypatch.undo()
    assert Position.load(run.spool).pending and unsent(run.spool) == 1
    spool.rewind(1)  # the training was killed too, and computes step 2 again
    spool.metrics(2, {"loss": 2.25})
    spool.metrics(3, {"loss": 3.0})
    assert sync(run, spec) == 0
    assert sent(spec, run)["loss"] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_lost_run_id_is_found_again_by_its_tag(
    spool: Spool, run: RunFolder, spec: TrackingSpec, sent: Sent
) -> None:
    spool.metrics(1, {"loss": 1.0})
    sync(run, spec)
    first = mlflow_run_id(run.spool)
    (run.spool / TARGET).unlink()
    spool.metrics(2, {"loss": 2.0})
    assert sync(run, spec) == 0
    assert mlflow_run_id(run.spool) == first and num_runs(spec) == 1
    assert sent(spec, run)["loss"] == [(1, 1.0), (2, 2.0)]


def test_unsent_points_after_a_rewind_are_dropped_for_the_new_ones(
    spool: Spool, run: RunFolder, spec: TrackingSpec, sent: Sent
) -> None:
    for step in (1, 2, 3, 4):
        spool.metrics(step, {"loss": step})
    spool.rewind(2)
    for step in (3, 4, 5):
        spool.metrics(step, {"loss": step + 0.5})
    sync(run, spec)
    assert sent(spec, run)["loss"] == [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.5)]


def test_sent_points_after_a_rewind_appear_once(
    spool: Spool, run: RunFolder, spec: TrackingSpec, sent: Sent
) -> None:
    for step in (1, 2, 3, 4):
        spool.metrics(step, {"loss": step})
    sync(run, spec)
    for _ in range(2):
        spool.rewind(2)
        for step in (3, 4, 5):
            spool.metrics(step, {"loss": step})
        sync(run, spec)
    assert sent(spec, run)["loss"] == [(step, float(step)) for step in range(1, 6)]


def test_what_a_writer_adds_that_was_taken_for_dead_is_not_sent(
    spool: Spool, run: RunFolder, spec: TrackingSpec, sent: Sent
) -> None:
    spool.metrics(1, {"loss": 1.0})
    taker = Spool(run.spool)
    taker.metrics(2, {"loss": 0.5})
    sync(run, spec)
    spool.metrics(3, {"loss": 99.0})  # now the sender goes on from its position
    spool.finish("FAILED")
    assert unsent(run.spool) == 0
    sync(run, spec)
    taker.metrics(3, {"loss": 0.25})
    taker.finish("FINISHED")
    sync(run, spec)
    assert sent(spec, run)["loss"] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert mlflow_run(spec, run).info.status == "FINISHED"


def test_attempts_continue_one_run_and_its_status_follows(
    run: RunFolder, spec: TrackingSpec
) -> None:
    for status in ("SCHEDULED", "FAILED", "FINISHED"):
        spool = Spool(run.spool)
        sync(run, spec)
        assert mlflow_run(spec, run).info.status == "RUNNING"
        spool.finish(status)
        sync(run, spec)
        assert mlflow_run(spec, run).info.status == status
    assert num_runs(spec) == 1


def test_an_end_that_is_written_while_mlflow_is_found_is_noticed(
    spool: Spool, run: RunFolder, spec: TrackingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(run, spec)
    spool.metrics(1, {"loss": 1.0})
    delivery = Delivery(run.spool)
    real = delivery._attach
    monkeypatch.setattr(delivery, "_attach", lambda: (spool.finish("FINISHED"), real()))
    assert not delivery.ended
    delivery.deliver()
    assert delivery.ended and unsent(run.spool) == 0


def test_params_changed_by_a_resume_become_tags(
    spool: Spool, run: RunFolder, spec: TrackingSpec
) -> None:
    spool.params({"workers": 2, "seed": 0})
    sync(run, spec)
    spool.params({"workers": 4, "seed": 0, "new": 1})
    sync(run, spec)
    data = mlflow_run(spec, run).data
    assert data.params == {"workers": "2", "seed": "0", "new": "1"}
    assert data.tags["param_override.workers"] == "4"
    assert "param_override.seed" not in data.tags


def test_an_event_that_mlflow_refuses_does_not_hold_up_the_rest(
    spool: Spool, run: RunFolder, spec: TrackingSpec, sent: Sent
) -> None:
    spool.metrics(1, {"loss": 1.0})
    spool.metrics(2, {"not allowed: %$#": 1.0})
    spool.params({"bad=name?": 1})
    gone = run.path / "gone.txt"
    gone.write_text("x")
    spool.artifact(gone)
    gone.unlink()
    spool.metrics(3, {"loss": 3.0})
    assert sync(run, spec) == 0
    assert sent(spec, run) == {"loss": [(1, 1.0), (3, 3.0)]}
    assert Position.load(run.spool).rejected == 3


def test_a_run_deleted_in_mlflow_is_an_error_that_says_what_to_do(
    spool: Spool, run: RunFolder, spec: TrackingSpec
) -> None:
    assert spec.uri is not None
    sync(run, spec)
    connect(spec.uri).delete_run(mlflow_run_id(run.spool) or "")
    spool.metrics(1, {"loss": 1.0})
    with pytest.raises(Refused, match="was deleted; restore it"):
        sync(run, spec)


def test_another_store_gets_everything_once(
    spool: Spool, run: RunFolder, spec: TrackingSpec, sent: Sent, tmp_path: Path
) -> None:
    for step in (1, 2):
        spool.metrics(step, {"loss": step})
    sync(run, spec)
    other = spec.model_copy(update={"uri": f"sqlite:///{tmp_path}/other/mlflow.db"})
    assert sync(run, other) == 0
    assert sent(other, run) == {"loss": [(1, 1.0), (2, 2.0)]}
    spool.metrics(3, {"loss": 3.0})
    assert sync(run, spec) == 0  # and back: nothing doubled
    assert sent(spec, run) == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0)]}
    assert num_runs(spec) == 1


def test_a_long_backlog_is_sent_in_few_requests(
    spool: Spool, run: RunFolder, spec: TrackingSpec, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1000):
        spool.metrics(step, {"a": step, "b": -step, "c": 0.0})
    saves: list[int] = []
    real = Position.save
    monkeypatch.setattr(Position, "save", lambda self, to: (saves.append(self.n), real(self, to)))
    sync(run, spec)
    assert len(saves) < 14
    stored = sent(spec, run)
    assert {key: len(points) for key, points in stored.items()} == {"a": 1000, "b": 1000, "c": 1000}


def test_a_damaged_position_file_means_the_beginning(tmp_path: Path) -> None:
    for text in ("", "{", "[]", json.dumps({"offset": 3})):
        (tmp_path / position_file.FILE).write_text(text)
        assert Position.load(tmp_path) == Position()
