"""Small real shards, short trainings in this process, and an MLflow file of the test's own."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_prep.__main__ import main as data_prep
from pipeline.__main__ import main as pipeline
from pipeline.run.folder import RunFolder
from pipeline.tracking.client import connect

SMALL = (
    "length={steps: 6}", "lr={kind: constant, peak: 0.005}", "ema.decay=0.5",
    "stages={kind: fixed, px: 16, micro_batches: 2, mixup: 0.1, dropout: 0.1}",
    "batch.global_size=16", "preprocess.eval_px=16", "loader.workers=0",
    "checkpoint={every_steps: 2}", "evaluate={every_steps: 3}",
)  # fmt: skip
OFFLINE = ("tracking.enabled=false", "tracking.register_as=null")

Run = Callable[..., int]


def train(data: Path, runs: Path, *overrides: str) -> int:
    """Train configs/demo.yaml, made small; returns the exit code."""
    words = (f"data={data}", f"runs={runs}", *SMALL, *OFFLINE, *overrides)
    return pipeline(["train", "configs/demo.yaml", *words])


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _build(raw: Path, out: Path, classes: str) -> Path:
    words = ["--classes", classes, "--per-class", "12", "--holdout", "0.1", "--workers", "1"]
    assert data_prep(["build", str(raw), str(out), *words]) == 0
    return out


@pytest.fixture(scope="session")
def low_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the digits 0 to 5: 72 images to train on, 108 to evaluate on."""
    return _build(digits.parent / "raw", tmp_path_factory.mktemp("low") / "low", "0,1,2,3,4,5")


@pytest.fixture(scope="session")
def high_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the digits 4 to 9: two classes are among those of `low_digits`."""
    return _build(digits.parent / "raw", tmp_path_factory.mktemp("high") / "high", "4,5,6,7,8,9")


@pytest.fixture(scope="session")
def finished(repo: Path, low_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run on `low_digits`, to be read only."""
    runs = tmp_path_factory.mktemp("finished")
    with working_in(repo):
        assert train(low_digits, runs, "name=finished") == 0
    return RunFolder(runs / "finished")


@pytest.fixture
def a_finished_run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of `finished` that the test may change; its recipe names the old place."""
    shutil.copytree(finished.path, tmp_path / "runs" / "finished")
    return RunFolder(tmp_path / "runs" / "finished")


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """The overrides that make configs/demo.yaml a training of a second."""
    return (*SMALL, *OFFLINE)


@pytest.fixture
def small_train(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Trains on the given shards into tmp_path/runs: `small_train(data, *overrides)`."""
    monkeypatch.chdir(repo)
    for name in ("PIPELINE_ATTEMPT", "MLFLOW_TRACKING_URI", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return lambda data, *overrides: train(data, tmp_path / "runs", *overrides)


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(_empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty MLflow file; it is also the environment's."""
    shutil.copy(_empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri
