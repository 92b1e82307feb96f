"""Wrong use and bad luck, as a person meets them: the message, the exit code, what stays behind."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.jobs import progress
from pipeline.run.folder import RunFolder, Status
from pipeline.run.lease import Lease

SMALL = (
    "length={steps: 4}", "lr.warmup_epochs=0.02", "stages={kind: fixed, px: 16, micro_batches: 4}",
    "batch.global_size=16", "loader.workers=0",
)  # fmt: skip
OFFLINE = "tracking.enabled=false"


@pytest.fixture(autouse=True)
def in_repo(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)
    for name in ("PIPELINE_ATTEMPT", "MLFLOW_TRACKING_URI", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def demo(digits: Path, tmp_path: Path) -> list[str]:
    """The arguments of a small training."""
    return ["train", "configs/demo.yaml", f"data={digits}", f"runs={tmp_path}/runs", *SMALL]


def run(module: str, *arguments: str | Path, **kw) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kw)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr.peek=0.1", ("configs/demo.yaml", "'lr.peek' is unknown", "correct the name")),
        ("batch.global_size=many", ("'batch.global_size' is 'many'", "valid integer")),
        ("stages.micro_batches=7", ("loader.lanes is 64", "7 micro-batches", "raise loader.lanes")),
        ("model=v2_z", ("v2_z", "v2_s")),
    ],
)
def test_a_wrong_setting_names_file_field_value_and_remedy(
    override: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "configs/demo.yaml", "data.num_train=1438", override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    for word in words:
        assert word in error


def test_a_missing_config_lists_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "configs/v2_l_22k.yaml"]) == 2
    assert "v2_l_21k" in capsys.readouterr().err


def test_missing_shards_name_the_folder_and_the_command_that_makes_them(
    demo: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*demo, f"data={tmp_path}/none"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/none" in error
    assert "data_prep build" in error
    assert not (tmp_path / "runs").exists()


def test_a_world_that_does_not_divide_the_micro_batches_is_told_which_would(
    demo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert main([*demo, OFFLINE]) == 2
    assert "3 ranks cannot share equally; use 1, 2, 4 ranks" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_another_rank_than_0_refuses_is_left_for_the_supervisor(
    demo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIPELINE_ATTEMPT", "3")
    assert main([*demo, OFFLINE, f"data={tmp_path}/none"]) == 2
    assert f"{tmp_path}/none" in RunFolder(tmp_path / "runs" / "demo").read_rank_error(3)


def test_a_failure_is_told_without_the_name_of_its_class(
    demo: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("lr={kind: constant, peak: 1e30}", "guard={max_bad_steps: 0, max_rollbacks: 0}")
    assert main([*demo, OFFLINE, *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: steps ") and "guard.max_rollbacks is 0" in error
    outcome = RunFolder(tmp_path / "runs" / "demo").read_outcome(0)
    assert outcome is not None and outcome.reason.startswith("steps ")


def test_a_second_job_on_a_run_is_refused_and_the_first_is_not_disturbed(
    demo: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = RunFolder(tmp_path / "runs" / "demo")
    lease = Lease(folder.lease)
    monkeypatch.setenv("PIPELINE_ATTEMPT", "3")
    assert main([*demo, OFFLINE]) == 2
    error = capsys.readouterr().err
    assert f"process {os.getpid()}" in error
    assert "another name=" in error
    lease.check()
    lease.release()
    assert not folder.recipe.exists()
    outcome = folder.read_outcome(3)
    assert outcome is not None
    assert outcome.status is Status.MISUSE


def test_another_recipe_is_refused_with_its_differences_unless_accepted(
    demo: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*demo, OFFLINE]) == 0
    capsys.readouterr()
    assert main([*demo, OFFLINE, "lr.peak=0.5", "seed=3"]) == 2
    error = capsys.readouterr().err
    assert "lr.peak: 0.02 -> 0.5" in error
    assert "seed: 0 -> 3" in error
    assert main([*demo, OFFLINE, "evaluate.batch=7", "checkpoint.keep=9"]) == 0
    assert main([*demo, OFFLINE, "lr.peak=0.5", "--accept-changes"]) == 0


def test_a_training_outlives_an_mlflow_that_is_away_and_says_what_to_type_later(
    demo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(progress, "DRAIN_S", 2.0)
    assert main([*demo, "tracking.uri=http://127.0.0.1:9"]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "runs" / "demo"
    assert f"python -m pipeline sync {folder}" in said
    assert f"python -m pipeline register {folder}" in said
    assert (folder / "package" / "model.safetensors").is_file()
    assert not (folder / "registered.json").exists()


@pytest.mark.parametrize("job", ["predict", "export", "promote"])
def test_a_registry_that_is_away_is_one_line_and_exit_code_1(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    model = "models:/demo@candidate"
    arguments = {
        "predict": ["predict", "--model", model, "cat.jpg"],
        "export": ["export", model, str(tmp_path / "out")],
        "promote": ["promote", model],
    }[job]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_run_with_the_reason_and_nothing_to_trust(
    demo: list[str], tmp_path: Path
) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = run("pipeline", *demo, OFFLINE, "checkpoint.every_steps=1", preexec_fn=small_files)
    assert done.returncode == 1, done.stderr
    folder = RunFolder(tmp_path / "runs" / "demo")
    assert "checkpoint not written" in done.stdout
    assert str(folder.checkpoints) in done.stdout
    assert "make room" in done.stdout
    assert folder.latest_step() == -1
    assert list(folder.checkpoints.glob("step-*")) == []


def test_without_slurm_a_chain_is_answered_with_the_local_launcher(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": str(tmp_path)}
    done = run("launch", "submit", "configs/demo_chain.yaml", env=env)
    assert done.returncode == 2
    assert "no sbatch" in done.stderr
    assert "python -m launch local" in done.stderr


def test_an_empty_class_folder_is_named_and_a_text_among_images_only_listed(
    repo: Path, tmp_path: Path
) -> None:
    made = run("data_prep", "synthetic", "digits", tmp_path / "raw")
    assert made.returncode == 0, made.stderr
    (tmp_path / "raw" / "3" / "notes.jpg").write_text("not a picture")
    build = ("build", tmp_path / "raw", tmp_path / "out", "--holdout", "0.2")
    (tmp_path / "raw" / "ten").mkdir()
    refused = run("data_prep", *build)
    assert refused.returncode == 2
    assert str(tmp_path / "raw" / "ten") in refused.stderr
    assert "--allow-empty" in refused.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    (tmp_path / "raw" / "ten").rmdir()
    built = run("data_prep", *build)
    assert built.returncode == 0, built.stderr
    assert "3/notes.jpg" in (tmp_path / "out" / "rejects.jsonl").read_text()
