"""What is read from a run's folder, whole, half written or damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.collect import read_run, read_transfer
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse
from pipeline.tracking.spool import Spool

EVALUATION: dict[str, Any] = {
    "step": 40, "num_images": 6, "top1": 0.5, "top5": 1.0, "loss": 1.25,
    "classes": ["cat", "dog"], "confusion": [[2, 1], [2, 1]],
    "samples": [{"id": 7, "label": 0, "predicted": 1, "probability": 0.75}],
}  # fmt: skip
REGISTERED = {"name": "net", "version": 3, "uri": "models:/net/3", "digest": "ab" * 32}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "demo")
    spool = Spool(run.spool)
    spool.tags({"world": "2", "commit": "c" * 40})
    for step in range(1, 41):
        stage = (step - 1) // 20
        values = {"train/loss": 1 / step, "stage/index": stage, "stage/px": 16 * (stage + 1)}
        spool.metrics(step, {**values, "stage/mixup": 0.1 * stage, "train/epoch": step / 10})
    spool.rewind(30)
    for step in range(31, 41):
        spool.metrics(step, {"train/loss": 2 / step, "stage/index": 1, "stage/px": 32})
    spool.metrics(40, {"eval/top1": 0.5})
    spool.finish("FINISHED")
    run.recipe.write_text(
        "model: {name: tiny}\ndata: {path: shards/d}\nstrategy: {kind: ddp}\nseed: 4\n"
        "init: {from: 'models:/net/2'}\n"
    )
    run.evaluation.write_text(json.dumps(EVALUATION))
    (run.path / "plan.txt").write_text("stage 0")
    (run.path / "registered.json").write_text(json.dumps({**REGISTERED, "parent": "models:/net/2"}))
    return run


def test_a_whole_run_is_read(run: RunFolder) -> None:
    report = read_run(run, image_of=lambda sample: f"image {sample}".encode())
    assert report.name == "demo" and report.steps == 40 and report.num_attempts == 1
    assert [(s.index, s.start, s.end, s.px) for s in report.stages] == [
        (0, 0, 20, 16), (1, 20, 40, 32)
    ]  # fmt: skip
    assert report.stages[1].settings == {"Mixup": "0.1"}
    assert list(report.series["train/loss"])[-1] == (40, 0.05)
    assert report.details["Model"] == "tiny" and report.details["Ranks"] == "2"
    assert report.details["Started from"] == "models:/net/2"
    assert report.evaluation is not None and report.evaluation.samples[0].image == b"image 7"
    assert report.registered is not None and report.registered.lineage == ["models:/net/2"]
    assert report.plan_text == "stage 0"


def test_training_time_leaves_out_the_time_between_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, now = RunFolder(tmp_path / "demo"), [1000]
    monkeypatch.setattr("time.time_ns", lambda: now[0] * 10**9)
    for start in (1000, 9000):
        now[0] = start
        spool = Spool(run.spool)
        now[0] = start + 60
        spool.metrics(start, {"train/loss": 1.0})
        spool.close()
    report = read_run(run)
    assert report.seconds == 120 and report.num_attempts == 2


def test_an_empty_folder_is_a_report_with_nothing_in_it(tmp_path: Path) -> None:
    report = read_run(RunFolder(tmp_path))
    assert report.evaluation is None and report.registered is None and report.steps == 0
    assert not report.series and not report.stages and report.seconds is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"step": "x"}', '{"samples": [3]}'])
def test_damaged_results_are_left_out(run: RunFolder, text: str) -> None:
    run.evaluation.write_text(text)
    (run.path / "registered.json").write_text(text)
    run.recipe.write_text("a: [")
    report = read_run(run)
    assert report.evaluation is None and report.registered is None
    assert "Model" not in report.details and report.steps == 40


def test_an_evaluation_may_lack_confusion_and_samples(run: RunFolder) -> None:
    values = {**EVALUATION, "confusion": None, "samples": None, "top5": None, "classes": None}
    run.evaluation.write_text(json.dumps(values))
    evaluation = read_run(run).evaluation
    assert evaluation is not None and evaluation.confusion is None and not evaluation.samples
    assert evaluation.name(1) == "class 1"
    run.evaluation.write_text(json.dumps({**EVALUATION, "confusion": [[1, 2], [3]]}))
    evaluation = read_run(run).evaluation
    assert evaluation is not None and evaluation.confusion is None


def test_shards_that_broke_since_cost_only_the_pictures(run: RunFolder) -> None:
    def broken(sample: int) -> bytes:
        raise OSError(f"shard of sample {sample} is gone")

    evaluation = read_run(run, broken).evaluation
    assert evaluation is not None and evaluation.samples[0].image is None


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="nowhere: no such run folder"):
        read_run(RunFolder(tmp_path / "nowhere"))


def test_transfer_results_are_read_with_published_figures_as_fractions(tmp_path: Path) -> None:
    path = tmp_path / "transfer.json"
    tasks = [
        {"task": "cifar10", "top1": {"finetuned": [0.9, 0.91]}, "published": {"paper": 98.7}},
        {"task": "pets", "missing": "no shards"},
    ]
    path.write_text(json.dumps({"suite": "s", "model": "models:/net/3", "tasks": tasks}))
    report = read_transfer(path)
    assert report.tasks[0].published == {"paper": pytest.approx(0.987)}
    assert report.tasks[1].missing == "no shards"
    for text in ("", "[]", '{"tasks": [1]}'):
        path.write_text(text)
        with pytest.raises(Misuse, match=r"transfer\.json: is no"):
            read_transfer(path)
