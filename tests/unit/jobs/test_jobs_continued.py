"""Checkpoints of another architecture or label space are refused before anything is changed."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.state import TrainState
from pipeline.jobs.continued import check_shapes
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse


@pytest.fixture
def run(a_finished_run: RunFolder) -> RunFolder:
    """The finished run where `small_train(data, "name=finished")` goes on with it."""
    return a_finished_run


def test_another_model_is_refused_even_where_changes_are_accepted(
    small_train, run: RunFolder, low_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = run.recipe.read_text()
    words = ("name=finished", "--accept-changes", "length.steps=8")
    other = ("model=v2_b0", "stages.px=32", "preprocess.eval_px=32")
    assert small_train(low_digits, *words, *other) == 2
    error = capsys.readouterr().err
    assert "field 'model.name' is 'v2_b0'" in error and "are of 'tiny'" in error
    assert "set model.name=tiny" in error
    assert run.recipe.read_text() == recorded


def test_equally_many_other_classes_are_refused_even_where_changes_are_accepted(
    small_train, run: RunFolder, high_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = run.recipe.read_text()
    words = ("name=finished", "--accept-changes", "length.steps=8")
    assert small_train(high_digits, *words) == 2
    assert "class 0 is '0' there and '4' here" in capsys.readouterr().err
    assert run.recipe.read_text() == recorded


def test_a_run_without_a_checkpoint_may_become_anything(
    small_train, run: RunFolder, high_digits: Path
) -> None:
    shutil.rmtree(run.checkpoints)
    assert small_train(high_digits, "name=finished", "--accept-changes") == 0


def test_a_checkpoint_of_other_shapes_is_refused_with_the_tensor() -> None:
    here = {"stem.weight": torch.zeros(8, 3), "bn.mean": torch.zeros(8)}
    state = TrainState(4, {"stem.weight": torch.zeros(8, 3)}, {"bn.mean": torch.zeros(8)}, {}, {})
    check_shapes(state, here, "there")
    state.buffers["bn.mean"] = torch.zeros(4)
    with pytest.raises(Misuse, match=r"there: 'bn.mean' is of shape \(4,\) there and of shape"):
        check_shapes(state, here, "there")
    del state.buffers["bn.mean"]
    with pytest.raises(Misuse, match=r"'bn.mean' is missing there and of shape \(8,\)"):
        check_shapes(state, here, "there")


def test_checkpoints_that_nothing_is_recorded_of_are_refused_by_their_shapes(
    small_train, run: RunFolder, low_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.recipe.unlink()
    words = ("name=finished", "model=v2_b0", "stages.px=32", "preprocess.eval_px=32")
    assert small_train(low_digits, *words) == 2
    assert "a checkpoint of another architecture" in capsys.readouterr().err
