"""A config that needs no data set, a set without images, ranks that only count, made-up SLURM."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.preflight.findings import Findings
from launch.target import Training, training
from pipeline.data.labels import LabelSpace
from pipeline.data.manifest import Manifest, Shard, Split, save_manifest
from pipeline.run.folder import RunFolder
from pipeline.run.lease import Lease

CONFIG = """
name: counted
runs: {runs}
length: {{epochs: 2}}
batch: {{global_size: 64}}
stages: {{kind: paper, count: 2, px: [32, 64], randaugment: [5, 10], mixup: [0, 0.2],
         cutmix: [0, 0], dropout: [0.1, 0.2], micro_batches: 8}}
lr: {{kind: cosine, peak: 0.1, warmup_epochs: 1}}
model: tiny
data: {{path: {data}, num_train: 6400, num_eval: 100, num_classes: 10}}
preprocess: {{eval_px: 64}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config whose data set is missing; its data card's counts are there."""
    path = tmp_path / "counted.yaml"
    path.write_text(CONFIG.format(runs=tmp_path / "runs", data=tmp_path / "shards"))
    return path


@pytest.fixture
def found() -> Findings:
    """Where the checks of a preflight put what they find."""
    return Findings()


@pytest.fixture
def target(config: Path) -> Callable[..., Training]:
    """Read the config with overrides, as a preflight does."""
    return lambda *overrides: training(["train", str(config), *overrides])


@pytest.fixture
def make_manifest() -> Callable[..., None]:
    """Make a folder with a manifest and one tar of so many bytes for each split."""

    def make(folder: Path, num_train: int, num_classes: int = 10) -> None:
        names = tuple(f"c{number}" for number in range(num_classes))
        splits = {"train": _split(folder, "train", num_train, num_classes),
                  "eval": _split(folder, "eval", 100, num_classes)}  # fmt: skip
        labels = LabelSpace(name="counted", classes=names)
        save_manifest(folder, Manifest(name="up", tool="tests", labels=labels, splits=splits))

    return make


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that was prepared."""
    folder = RunFolder(tmp_path / "runs" / "counted")
    folder.path.mkdir(parents=True)
    folder.recipe.write_text("name: counted\n")
    return folder


@pytest.fixture
def lease(run: RunFolder) -> Iterator[Lease]:
    held = Lease(run.lease)
    yield held
    held.release()


def _split(folder: Path, name: str, num_samples: int, num_classes: int) -> Split:
    path = folder / name / "shard-000000.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(2048))
    file = f"{name}/{path.name}"
    shard = Shard(file=file, num_samples=num_samples, num_bytes=2048,
                  sha256="", index_sha256="", labels_sha256="")  # fmt: skip
    return Split(shards=(shard,), class_counts=(1,) * num_classes)


@pytest.fixture
def rank_program(repo: Path) -> list[str]:
    """The command of a rank that counts steps; append FOLDER STEPS [FAULT]."""
    return [sys.executable, str(repo / "tests" / "slurm" / "stand_in_rank.py")]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a made-up program first in PATH: `programs(name, body of a shell script)`.

    What it was called with is appended to the file that is returned.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name: str, body: str) -> Path:
        calls = tmp_path / f"{name}.calls"
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{body}\n')
        (folder / name).chmod(0o755)
        return calls

    return make


@pytest.fixture
def copy_shards() -> Callable[[Path, Path], Path]:
    """Copy a folder of shards, to damage the copy; returns where it is."""
    return lambda source, place: Path(shutil.copytree(source, place))
