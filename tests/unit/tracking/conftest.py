"""A fresh sqlite store for each test (copied, since making its tables takes seconds), a server."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.run.folder import RunFolder
from pipeline.tracking.client import connect
from pipeline.tracking.digests import seal
from pipeline.tracking.settings import TrackingSpec
from tests.mlflow_server import Server


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture(autouse=True)
def no_server_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def spec(tmp_path: Path, empty_database: Path) -> TrackingSpec:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return TrackingSpec(uri=f"sqlite:///{tmp_path}/mlflow.db", register_as="net")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "demo")


@pytest.fixture
def sent() -> Callable[[TrackingSpec, RunFolder], dict[str, list[tuple[int, float]]]]:
    """Return what MLflow has of a run: {metric: [(step, value), ...] as stored}."""
    from pipeline.tracking.delivery import mlflow_run_id

    def read(spec: TrackingSpec, run: RunFolder) -> dict[str, list[tuple[int, float]]]:
        assert spec.uri is not None
        client = connect(spec.uri)
        run_id = mlflow_run_id(run.spool)
        assert run_id is not None
        keys = client.get_run(run_id).data.metrics
        return {
            key: [(p.step, p.value) for p in client.get_metric_history(run_id, key)] for key in keys
        }

    return read


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[Server]:
    """A server that is not started yet."""
    shutil.copy(empty_database, tmp_path / "server.db")
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    def wait(condition: Callable[[], object], timeout_s: float = 240.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.1)

    return wait


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A sealed folder as the registry takes it; what is inside does not matter to it."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "config.json").write_text('{"model": "tiny"}')
    seal(folder)
    return folder
