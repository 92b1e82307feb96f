"""From a training to the registry and on: the jobs in the order in which people use them."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.__main__ import main
from pipeline.checkpoint.store import read
from pipeline.export.package import load_package
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder
from pipeline.tracking.registry import lineage, resolve
from pipeline.tracking.settings import TrackingSpec

SMALL = (
    "length={steps: 4}", "lr.warmup_epochs=0.02", "stages={kind: fixed, px: 16, micro_batches: 4}",
    "batch.global_size=16", "loader.workers=0", "checkpoint.every_steps=4",
)  # fmt: skip
CONFIG = "configs/demo.yaml"


@dataclass(frozen=True)
class Trained:
    """A small run that is finished and registered as models:/small."""

    folder: RunFolder
    uri: str
    data: Path

    def train(self, *overrides: str) -> list[str]:
        fixed = [f"data={self.data}", f"runs={self.folder.path.parent}", *SMALL]
        return ["train", CONFIG, *fixed, *overrides]


@pytest.fixture(scope="module")
def trained(repo: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    base = tmp_path_factory.mktemp("chain")
    run = Trained(RunFolder(base / "runs" / "small"), f"sqlite:///{base}/mlflow.db", digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo)
        patch.setenv("MLFLOW_TRACKING_URI", run.uri)
        assert main([*run.train("name=small", "tracking.register_as=small")]) == 0
    return run


@pytest.fixture(autouse=True)
def surroundings(repo: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.uri)


def test_what_is_registered_is_the_average_of_the_last_checkpoint(trained: Trained) -> None:
    package = load_package(trained.folder.package)
    ema = read(trained.folder.checkpoints / "step-000000004").ema
    registered = package.model.state_dict()
    assert registered.keys() == ema.keys()
    assert all(torch.equal(registered[name], ema[name]) for name in ema)
    assert package.labels.classes == tuple("0123456789")
    version = resolve("models:/small@candidate", TrackingSpec())
    noted = read_json(trained.folder.path / "registered.json")
    assert noted is not None
    assert version.digest == noted["digest"]


def test_a_registered_model_gives_the_same_logits_as_the_package(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    assert main(["export", "models:/small@candidate", str(out)]) == 0
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        here = load_package(trained.folder.package).model.eval()(images)
        there = load_package(out).model.eval()(images)
    assert torch.equal(here, there)
    capsys.readouterr()
    assert main(["export", "models:/small@candidate", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_finetuning_starts_from_the_registered_weights_and_says_what_became_of_the_head(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("name=tuned", "init=models:/small@candidate", "tracking.register_as=tuned",
             "lr.peak=1e-9")  # fmt: skip
    assert main(trained.train(*words)) == 0
    assert "head rows of 10 of 10 classes taken over" in capsys.readouterr().out
    before = read(trained.folder.checkpoints / "step-000000004").ema
    after = read(trained.folder.path.parent / "tuned/checkpoints/step-000000004").weights
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in after)
    version = resolve("models:/tuned@candidate", TrackingSpec())
    assert version.tags["parent"] == "models:/small@candidate"
    assert [parent.name for parent in lineage(version, TrackingSpec())] == ["small"]


def test_another_architecture_is_refused_by_name(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("name=other", "model=v2_cifar", "init=models:/small@candidate")
    assert main(trained.train(*words)) == 2
    error = capsys.readouterr().err
    assert "tiny does not fit model.name=v2_cifar" in error


def test_evaluate_repeats_the_score_of_the_run(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    noted = read_json(trained.folder.evaluation)
    assert noted is not None
    for model in ("models:/small@candidate", str(trained.folder.path)):
        assert main(["evaluate", model, str(trained.data)]) == 0
        assert f"top-1 {noted['top1']:.4f}" in capsys.readouterr().out


def test_predict_names_classes_and_goes_on_after_a_broken_image(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((trained.data.parent / "raw").rglob("*.jpg"))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(good.read_bytes()[:200])
    words = ["predict", "--model", "models:/small@candidate", "--top", "2", str(bad), str(good)]
    assert main(words) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{bad}: error:")
    assert lines[1].startswith(f"{good}: ")
    assert len(lines[1].removeprefix(f"{good}: ").split("  ")) == 2


def test_promote_makes_a_version_the_champion(trained: Trained) -> None:
    assert main(["promote", "models:/small@candidate"]) == 0
    champion = resolve("models:/small@champion", TrackingSpec())
    assert champion.version == resolve("models:/small@candidate", TrackingSpec()).version


def test_registering_again_is_the_same_version_and_sync_has_nothing_left(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resolve("models:/small@candidate", TrackingSpec()).version
    assert main(["register", str(trained.folder.path)]) == 0
    assert resolve("models:/small@candidate", TrackingSpec()).version == before
    assert main(["sync", str(trained.folder.path)]) == 0
    assert "all events" in capsys.readouterr().out


def test_an_unfinished_run_is_not_registered(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(trained.folder.recipe.read_text())
    assert main(["register", str(tmp_path)]) == 2
    assert "has not finished" in capsys.readouterr().err


def test_a_suite_trains_its_cells_once_names_missing_data_and_fails_for_it(
    trained: Trained, repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [f"'{word}'" for word in (*SMALL, "tracking.enabled=false")]
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"name: suite\nconfig: {repo}/configs/demo.yaml\nruns: {tmp_path}/runs\n"
        "from_scratch: true\ntasks:\n"
        f"  - {{name: digits, data: {trained.data}, overrides: [{', '.join(small)}]}}\n"
        f"  - {{name: birds, data: {tmp_path}/birds, published: {{paper: 84.3}}}}\n"
    )
    assert main(["transfer", "models:/small@candidate", str(suite)]) == 1
    result = json.loads((tmp_path / "runs/suite/transfer.json").read_text())
    digits, birds = result["tasks"]
    assert digits["top1"].keys() == {"finetuned", "scratch"}
    assert str(tmp_path / "birds") in birds["missing"]
    capsys.readouterr()
    words = ["transfer", "models:/small@candidate", str(suite), "--only", "digits"]
    assert main(words) == 0
    assert "step " not in capsys.readouterr().out, "finished cells are only read"
    assert main([*words[:3], "--only", "cats"]) == 2
    assert "no task 'cats'" in capsys.readouterr().err


def test_the_report_is_one_page_about_the_run(trained: Trained, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(trained.folder.path), "--output", str(page)]) == 0
    text = page.read_text()
    assert "models:/small/1" in text or "small" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
