"""From a run to a registered model and on: register, promote, finetune from it, predict, sync."""

from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.__main__ import main
from pipeline.checkpoint.store import read
from pipeline.data.decode import decode_eval
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import load_manifest
from pipeline.data.preprocess import PreprocessSpec
from pipeline.data.reader import ShardReader
from pipeline.engine.inputs import Inputs
from pipeline.jobs import sync as sync_job
from pipeline.jobs.start import open_package
from pipeline.models.efficientnet import build
from pipeline.recipe import load_recorded
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder
from pipeline.spec import dump
from pipeline.tracking.client import connect
from pipeline.tracking.delivery import mlflow_run_id
from pipeline.tracking.registry import lineage, resolve
from pipeline.tracking.sender import sync as send_rest
from pipeline.tracking.settings import TrackingSpec


def eval_images(data: Path, count: int, px: int) -> tuple[torch.Tensor, bytes]:
    """Return the first `count` images as uint8 (B, px, px, 3), and the first one's JPEG."""
    reader = ShardReader(SplitIndex(data, load_manifest(data), "eval"))
    preprocess = PreprocessSpec(eval_px=px, eval_resize="squash")
    pixels = [torch.tensor(decode_eval(reader.read(i), preprocess, px)) for i in range(count)]
    return torch.stack(pixels), reader.read(0)


def averaged_logits(run: RunFolder, images: torch.Tensor) -> torch.Tensor:
    """Compute logits from the averaged weights of the run's last checkpoint."""
    recipe = load_recorded(run)
    state = read(run.checkpoints / (run.checkpoints / "LATEST").read_text().strip())
    num_classes = state.ema["classifier.bias"].shape[0]
    model = build(recipe.model, num_classes, None).eval()
    model.load_state_dict(state.ema)
    inputs = Inputs(recipe.preprocess, num_classes, 0.0, 0, torch.device("cpu"), True)
    with torch.inference_mode():
        return model(inputs.images(images)).float()


def test_pretrained_registered_finetuned_and_used(
    small_train, low_digits: Path, high_digits: Path, store: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    tracked = ("tracking.enabled=true", "tracking.experiment=tests")
    assert small_train(low_digits, "name=low", "tracking.register_as=low", *tracked) == 0
    said = capsys.readouterr().out
    assert "registered as models:/low/1 (alias candidate)" in said
    assert "warning" not in said
    low = RunFolder(tmp_path / "runs" / "low")
    run_id = mlflow_run_id(low.spool)
    assert run_id is not None
    run = connect(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["length.steps"] == "6"
    assert len(connect(store).get_metric_history(run_id, "train/loss")) == 6

    init = "init=models:/low@candidate"
    assert small_train(high_digits, "name=high", "tracking.register_as=high", init) == 0
    high = RunFolder(tmp_path / "runs" / "high")
    assert "starting from models:/low@candidate: head rows of 2 of 6" in capsys.readouterr().out
    assert main(["register", str(high.path)]) == 0
    assert main(["register", str(high.path)]) == 0
    assert capsys.readouterr().out.count("registered as models:/high/1") == 2
    registered = read_json(high.path / "registered.json")
    assert registered is not None
    assert (registered["uri"], registered["parent"]) == ("models:/high/1", "models:/low@candidate")
    parents = lineage(resolve("models:/high@candidate", TrackingSpec()), TrackingSpec())
    assert [version.uri for version in parents] == ["models:/low/1"]

    images, jpeg = eval_images(high_digits, 8, 16)
    package = open_package("models:/high@candidate", TrackingSpec())
    assert package.digest == registered["digest"]
    assert torch.equal(package.logits(images), averaged_logits(high, images))
    best = package.labels.text(int(package.logits(images)[0].argmax()))
    (tmp_path / "digit.jpg").write_bytes(jpeg)
    assert main(["promote", "models:/high/1"]) == 0
    picture = str(tmp_path / "digit.jpg")
    assert main(["predict", picture, "--model", "models:/high@champion", "--top", "1"]) == 0
    out = capsys.readouterr().out
    assert "models:/high@champion is version 1" in out
    assert f"{picture}: {best} " in out


def test_only_a_finished_run_with_a_name_for_its_model_is_registered(
    a_finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_finished_run
    assert main(["register", str(run.path)]) == 2
    assert f"{run.recipe}: field 'tracking.register_as' is null" in capsys.readouterr().err
    values = load_recorded(run).values()
    run.recipe.write_text(dump({**values, "tracking": {"register_as": "net"}}))
    run.package.rename(run.path / "elsewhere")
    assert main(["register", str(run.path)]) == 2
    assert f"{run.package}: missing; the run has not finished" in capsys.readouterr().err
    assert main(["register", str(tmp_path)]) == 2
    assert f"{tmp_path}: not a run folder" in capsys.readouterr().err
    assert not (run.path / "registered.json").exists()


def test_what_was_trained_without_a_tracker_is_sent_later(
    a_finished_run: RunFolder, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", str(a_finished_run.path)]) == 0
    assert "all events of" in capsys.readouterr().out
    run_id = mlflow_run_id(a_finished_run.spool)
    assert run_id is not None
    points = connect(store).get_metric_history(run_id, "train/loss")
    assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]
    assert main(["sync", str(a_finished_run.path)]) == 0
    assert len(connect(store).get_metric_history(run_id, "train/loss")) == 6
    assert main(["sync", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_a_tracker_that_is_away_fails_sync_and_register_with_its_address(
    a_finished_run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_finished_run
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(sync_job, "send_rest", partial(send_rest, timeout_s=0.0))
    assert main(["sync", str(run.path)]) == 1
    error = capsys.readouterr().err
    assert "MLflow at http://127.0.0.1:9 does not answer" in error
    assert "Traceback" not in error
    values = load_recorded(run).values()
    run.recipe.write_text(dump({**values, "tracking": {"register_as": "net"}}))
    assert main(["register", str(run.path)]) == 1
    error = capsys.readouterr().err
    assert "MLflow at http://127.0.0.1:9 does not answer" in error
    assert "Traceback" not in error
    assert not (run.path / "registered.json").exists()
