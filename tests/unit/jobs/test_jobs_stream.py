"""Training on plain webdataset tars that have no index."""

import shutil
from pathlib import Path

import pytest

from pipeline.jobs.train import train
from pipeline.recipe import load_recipe
from pipeline.run.files import read_json
from pipeline.spec import Misuse

SMALL = (
    "length={steps: 6}", "lr.warmup_epochs=0.02", "stages={kind: fixed, px: 16, micro_batches: 2}",
    "batch.global_size=16", "loader.workers=0", "tracking.enabled=false",
)  # fmt: skip


@pytest.fixture
def plain_tars(digits: Path, tmp_path: Path) -> Path:
    """The tars of the train split, without index and manifest."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for tar in (digits / "train").glob("*.tar"):
        shutil.copy(tar, folder)
    return folder


def test_plain_tars_train_and_the_indexed_split_evaluates(
    repo: Path, digits: Path, plain_tars: Path, tmp_path: Path
) -> None:
    data = f"data={{path: '{digits}', stream: '{plain_tars}/*.tar', num_train: 1438}}"
    overrides = (*SMALL, data, f"runs={tmp_path}/runs")
    assert train(repo / "configs/demo.yaml", overrides, accept_changes=False) == 0
    evaluation = read_json(tmp_path / "runs/demo/evaluation.json")
    assert evaluation is not None
    assert (evaluation["step"], evaluation["num_images"]) == (6, 359)


def test_a_stream_must_say_how_many_images_it_has(repo: Path, digits: Path) -> None:
    data = f"data={{path: '{digits}', stream: '/none/*.tar'}}"
    with pytest.raises(Misuse, match="stream needs num_train"):
        load_recipe(repo / "configs/demo.yaml", [data])


def test_a_pattern_without_tars_is_refused(repo: Path, digits: Path, tmp_path: Path) -> None:
    data = f"data={{path: '{digits}', stream: '{tmp_path}/none/*.tar', num_train: 100}}"
    with pytest.raises(Misuse, match="0 shards"):
        train(repo / "configs/demo.yaml", (*SMALL, data, f"runs={tmp_path}/runs"), False)
