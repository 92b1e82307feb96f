"""From spool to MLflow, each point exactly once, whatever dies in between.

Three things together make it so. The position file says what was sent. Points carry the time at
which they were recorded, so MLflow's primary key (metric, time, step, value) takes a repetition
as the same point. And a metric's steps only rise: what is not above the last sent step, because a
resumed training computed it again, is not sent again.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.run.files import read_json, write_json
from pipeline.tracking import events
from pipeline.tracking.client import (
    KEY_TAG,
    Refused,
    Unreachable,
    answers,
    connect,
    experiment_id,
    find_run,
)
from pipeline.tracking.events import Event
from pipeline.tracking.position import Position

if TYPE_CHECKING:
    from mlflow import MlflowClient

TARGET = "mlflow.json"
MAX_POINTS, MAX_PARAMS = 900, 100  # MLflow takes 1000 and 100 in one request
MAX_PARAM_CHARS, MAX_TAG_CHARS = 6000, 5000
log = logging.getLogger(__name__)


class Delivery:
    """Sends the spool in `folder` to the MLflow named in its mlflow.json.

    Every method raises `Unreachable` where MLflow is away; call again later.
    """

    def __init__(self, folder: Path, timeout_s: int = 10, retries: int = 0) -> None:
        self.folder = folder
        self.target: dict[str, Any] = read_json(folder / TARGET) or {}
        self.uri: str = self.target["uri"]
        self.position = Position.load(folder)
        self._limits = (timeout_s, retries)
        self._mlflow: MlflowClient | None = None
        self._turn: Event | None = None  # the newest start or end of an attempt
        self._note_turn(events.read_events(folder))

    def deliver(self) -> None:
        """Send all that is there."""
        if self.position.uri in ("", self.uri) and not self._waiting():
            return
        try:
            if self._mlflow is None:
                self._attach()
            waiting = self._waiting()
            if self.position.pending and waiting:
                self._ask_marks()
            for batch in _batches(_without_void(waiting)):
                self._send(batch)
        except Unreachable:
            self._mlflow = None  # it may be another server, or an emptied one, that comes back
            raise

    def _waiting(self) -> list[Event]:
        return list(self.position.rest(self.folder))

    @property
    def ended(self) -> bool:
        """Whether the newest attempt has said how it ended."""
        return self._turn is not None and self._turn.kind == "finish"

    def mark_killed(self, writer: int) -> None:
        """Set the run to KILLED where process `writer` began the newest attempt and is gone."""
        turn = self._turn
        if turn is not None and turn.kind == "attempt" and turn.values["pid"] == writer:
            with answers(self.uri):
                self._client.set_terminated(self.position.run_id, "KILLED")

    def _note_turn(self, seen: Iterable[Event]) -> None:
        for event in seen:
            if event.kind in ("attempt", "finish"):
                self._turn = event

    @property
    def _client(self) -> "MlflowClient":
        if self._mlflow is None:
            self._attach()
        assert self._mlflow is not None
        return self._mlflow

    def _attach(self) -> None:
        """Find the training's run, or make it; its id is on disk before its first use."""
        first = next(events.read_events(self.folder))
        key = str(first.values.get("key", "")) or self.folder.resolve().parent.name
        client = connect(self.uri, *self._limits)
        with answers(self.uri):
            experiment = experiment_id(client, self.uri, self.target["experiment"])
            run = find_run(client, experiment, key, self.target.get("run_id"))
            if run is None:
                name = self.target["run_name"]
                run = client.create_run(experiment, first.time_ms, {KEY_TAG: key}, name)
        run_id = run.info.run_id
        if run.info.lifecycle_stage != "active":
            raise Refused(
                f"MLflow at {self.uri}: run {run_id} was deleted; restore it with `mlflow runs "
                f"restore --run-id {run_id}`, or delete {self.folder / TARGET} to start a new one"
            )
        self.target |= {"run_id": run_id, "artifact_uri": run.info.artifact_uri}
        write_json(self.folder / TARGET, self.target)
        if self.position.run_id != run_id:  # another store, or the position was lost
            self.position = Position(run_id=run_id, pending=bool(run.data.metrics))
        self.position.uri = self.uri
        self._mlflow = client

    def _ask_marks(self) -> None:
        with answers(self.uri):
            for key in self._client.get_run(self.position.run_id).data.metrics:
                points = self._client.get_metric_history(self.position.run_id, key)
                steps = [point.step for point in points]
                self.position.marks[key] = max([self.position.marks.get(key, -1), *steps])
        self.position.pending = False

    def _send(self, batch: list[Event]) -> None:
        try:
            if batch[0].kind == "metrics":
                self._send_metrics(batch)
            else:
                self._send_other(batch[0])
        except Refused as error:
            self._check_active()
            self.position.pending = False
            if len(batch) > 1:  # find the one that is refused
                for event in batch:
                    self._send([event])
                return
            log.warning("event %d is left out: %s", batch[0].n, error)
            self.position.rejected += 1
        last = batch[-1]
        self.position.offset, self.position.n = last.end, last.n
        self.position.writer = last.writer
        self._note_turn(batch)
        self.position.pending = False
        self.position.save(self.folder)

    def _send_metrics(self, batch: list[Event]) -> None:
        from mlflow.entities import Metric

        marks = dict(self.position.marks)
        points = []
        for event in batch:
            step = int(event.values["step"])
            for key, value in event.values["values"].items():
                if step > marks.get(key, -1):
                    marks[key] = step
                    points.append(Metric(key, float(value), event.time_ms, step))
        if points:
            self.position.pending = True
            self.position.save(self.folder)
            with answers(self.uri):
                for start in range(0, len(points), MAX_POINTS):
                    part = points[start : start + MAX_POINTS]
                    self._client.log_batch(self.position.run_id, metrics=part)
        self.position.marks = marks

    def _send_other(self, event: Event) -> None:
        run_id, values = self.position.run_id, event.values
        with answers(self.uri):
            if event.kind == "params":
                self._send_params(values)
            elif event.kind == "tags":
                self._send_tags(values)
            elif event.kind == "artifact":
                self._send_artifact(self.folder / values["path"])
            elif event.kind == "attempt":
                self._client.update_run(run_id, status="RUNNING")
                self._send_tags({key: text for key, text in values.items() if key != "pid"})
            elif event.kind == "finish" and values["status"] == "SCHEDULED":
                self._client.update_run(run_id, status="SCHEDULED")
            elif event.kind == "finish":
                self._client.set_terminated(run_id, values["status"], event.time_ms)

    def _send_params(self, values: dict[str, Any]) -> None:
        """MLflow's params never change; what a resumed attempt changed becomes a tag."""
        from mlflow.entities import Param

        have = self._client.get_run(self.position.run_id).data.params
        texts = {key: str(value)[:MAX_PARAM_CHARS] for key, value in values.items()}
        new = [Param(key, text) for key, text in texts.items() if key not in have]
        for start in range(0, len(new), MAX_PARAMS):
            self._client.log_batch(self.position.run_id, params=new[start : start + MAX_PARAMS])
        changed = {k: t for k, t in texts.items() if k in have and have[k] != t}
        self._send_tags({f"param_override.{key}": text for key, text in changed.items()})

    def _send_tags(self, values: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, str(value)[:MAX_TAG_CHARS]) for key, value in values.items()]
        for start in range(0, len(tags), MAX_PARAMS):
            self._client.log_batch(self.position.run_id, tags=tags[start : start + MAX_PARAMS])

    def _send_artifact(self, path: Path) -> None:
        """A file that cannot be stored, by a server that answers, must not hold up the rest."""
        try:
            self._client.log_artifact(self.position.run_id, str(path))
        except Exception as error:  # missing file, store without access, missing library, ...
            self._client.get_run(self.position.run_id)
            log.warning("%s: not stored in MLflow: %s", path, str(error).splitlines()[0])
            self.position.rejected += 1

    def _check_active(self) -> None:
        """Stop for good where the run was deleted meanwhile: nothing of it would be taken."""
        with answers(self.uri):
            run = self._client.get_run(self.position.run_id)
        if run.info.lifecycle_stage != "active":
            self._mlflow = None
            self._attach()


def mlflow_run_id(folder: Path) -> str | None:
    """Return the MLflow run of the spool in `folder`, None where none was made yet."""
    target = read_json(folder / TARGET)
    return target.get("run_id") if isinstance(target, dict) else None


def _without_void(waiting: list[Event]) -> list[Event]:
    """Empty the points that a later rewind makes void; events keep their places."""
    lowest: int | None = None
    kept: list[Event] = []
    for event in reversed(waiting):
        if event.kind == "rewind":
            step = int(event.values["step"])
            lowest = step if lowest is None else min(lowest, step)
        elif event.kind == "metrics" and lowest is not None and event.values["step"] > lowest:
            event = event._replace(values={"step": event.values["step"], "values": {}})
        kept.append(event)
    return kept[::-1]


def _batches(waiting: list[Event]) -> Iterator[list[Event]]:
    """Group neighbouring metrics events up to MAX_POINTS points; all others stand alone."""
    batch: list[Event] = []
    size = 0
    for event in waiting:
        points = len(event.values.get("values", ())) if event.kind == "metrics" else 0
        if batch and (event.kind != "metrics" or size + points > MAX_POINTS):
            yield batch
            batch, size = [], 0
        if event.kind == "metrics":
            batch.append(event)
            size += points
        else:
            yield [event]
    if batch:
        yield batch
