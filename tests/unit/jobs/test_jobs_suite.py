"""Transfer suites: which trainings they mean, what is run again, what is missing."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.chain import read_chain
from pipeline.__main__ import main
from pipeline.jobs import transfer as job
from pipeline.jobs.suite import SuiteSpec, TaskSpec, load_suite
from pipeline.recipe import load_recipe, load_recorded
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse

WriteSuite = Callable[..., Path]
TASKS = [{"name": "a", "data": "x/a"}, {"name": "b", "data": "x/b"}]


@pytest.fixture
def write_suite(
    repo: Path, tmp_path: Path, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> WriteSuite:
    """Write a suite of short trainings: `write_suite(tasks, **more)` returns its path."""
    monkeypatch.chdir(repo)

    def write(tasks: list[dict[str, Any]], **more: Any) -> Path:
        shared = [word for word in small if not word.startswith("tracking.register_as")]
        values = {
            "name": "suite",
            "config": str(repo / "configs" / "demo.yaml"),
            "runs": str(tmp_path / "runs"),
            "tasks": [{**task, "overrides": [*shared, *task.get("overrides", [])]}
                      for task in tasks],
            **more,
        }  # fmt: skip
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_the_config_lies_beside_the_suite_and_only_cuts_the_tasks(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "config": "fine.yaml", "tasks": TASKS}))
    suite, config = load_suite(path, None)
    assert config == tmp_path / "fine.yaml"
    assert [task.name for task in suite.tasks] == ["a", "b"]
    assert [task.name for task in load_suite(path, ["b"])[0].tasks] == ["b"]


def test_overrides_of_the_suite_hold_for_all_tasks_and_yield_to_a_task_s_own() -> None:
    """As configs/transfer.yaml tells how to take another model."""
    values = {
        "name": "s",
        "config": "fine.yaml",
        "overrides": ["model.name=v2_m", "stages.px=480"],
        "tasks": [TASKS[0], {**TASKS[1], "overrides": ["stages.px=384"]}],
    }
    suite = SuiteSpec.parse(values, "suite.yaml")
    a, b = (job.Cell(task, "finetuned", 0).overrides(suite, "m") for task in suite.tasks)
    assert a[:2] == ["model.name=v2_m", "stages.px=480"]
    assert b[:3] == ["model.name=v2_m", "stages.px=480", "stages.px=384"]


@pytest.mark.parametrize("name", ["transfer", "transfer_paper"])
def test_the_published_suites_run_for_other_sizes(repo: Path, name: str) -> None:
    """By the words that configs/transfer.yaml gives."""
    text = (repo / "configs" / "transfer.yaml").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("#   name=")]
    larger, config = load_suite(repo / "configs" / f"{name}.yaml", None, shlex.split(line[1:]))
    assert larger.name == "transfer-m"
    for task in larger.tasks:
        words = job.Cell(task, "finetuned", 0).overrides(larger, "models:/m@candidate")
        recipe = load_recipe(config, words)
        assert (recipe.model.name, recipe.preprocess.eval_px) == ("v2_m", 480)
        assert recipe.stages.resolve()[0].px == 480


def test_the_chain_on_the_page_of_slurm_transfers_the_model_that_it_trained(
    repo: Path, tmp_path: Path
) -> None:
    page = (repo / "docs/slurm.md").read_text(encoding="utf-8")
    (text,) = [block for block in page.split("```") if "\njobs:\n" in block]
    (tmp_path / "chain.yaml").write_text(text)
    chain = read_chain([tmp_path / "chain.yaml"])
    finetuning, (_, model, suite, *words) = chain.jobs[-2].run, chain.jobs[-1].run
    larger, config = load_suite(repo / suite, None, words)
    cell = job.Cell(larger.tasks[0], "finetuned", 0)
    trained = load_recipe(repo / finetuning[1])
    moved = load_recipe(config, cell.overrides(larger, model))
    assert model == f"models:/{trained.tracking.register_as}@candidate"
    assert moved.model.name == trained.model.name == "v2_l"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": []}, "'tasks'"),
        ({"seeds": []}, "'seeds'"),
        ({"tasks": [{"name": "../up", "data": "x"}]}, "'tasks.0.name'"),
        ({"task": TASKS}, "'task' is unknown"),
        ({"config": None}, "'config'"),
    ],
)
def test_a_wrong_suite_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "suite.yaml"
    values = {"name": "s", "config": "fine.yaml", "tasks": TASKS, **changes}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(Misuse, match="suite.yaml") as caught:
        load_suite(path, None)
    assert words in str(caught.value)


def test_an_unknown_task_is_answered_with_the_tasks(
    write_suite: WriteSuite, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_suite(TASKS)
    assert main(["transfer", "models:/m/1", str(path), "--only", "c"]) == 2
    assert f"{path}: no task 'c'; there are: a, b" in capsys.readouterr().err


def test_a_cell_is_named_after_suite_task_way_and_seed() -> None:
    suite = SuiteSpec(name="s", config="c", runs="r", tasks=(TaskSpec(name="a", data="x/a"),))
    words = job.Cell(suite.tasks[0], "finetuned", 2).overrides(suite, "models:/m@champion")
    for word in ("name=s-a-finetuned-2", "seed=2", "data=x/a", "runs=r"):
        assert word in words
    assert "init={from: 'models:/m@champion'}" in words
    assert "init=null" in job.Cell(suite.tasks[0], "scratch", 2).overrides(suite, "models:/m/1")


def test_cells_are_trained_once_and_missing_shards_are_named(
    write_suite: WriteSuite, finished: RunFolder, high_digits: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tasks = [
        {"name": "absent", "data": f"{tmp_path}/absent"},
        {"name": "high", "data": str(high_digits), "published": {"paper": 98.7}},
    ]
    arguments = ["transfer", str(finished.path), str(write_suite(tasks, from_scratch=True))]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert f"no shards in {tmp_path}/absent" in out
    assert "head rows of 2 of 6 classes" in out
    written = tmp_path / "runs" / "suite" / "transfer.json"
    first = read_json(written)
    assert first is not None
    assert first["model"] == str(finished.path)
    assert "absent" in first["tasks"][0]["missing"]
    top1 = first["tasks"][1]["top1"]
    assert set(top1) == {"finetuned", "scratch"}
    run = RunFolder(tmp_path / "runs" / "suite-high-finetuned-0")
    evaluation = read_json(run.evaluation)
    assert evaluation is not None
    assert top1["finetuned"] == [evaluation["top1"]]
    assert load_recorded(run).tracking.register_as is None

    def never(*_: object, **__: object) -> int:
        pytest.fail("a finished cell was trained again")

    monkeypatch.setattr(job, "train", never)
    assert main(arguments) == 1
    assert read_json(written) == first
    assert main([*arguments, "--only", "high"]) == 0


def test_a_cell_that_was_stopped_ends_the_job_with_its_code(
    write_suite: WriteSuite, finished: RunFolder, high_digits: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(job, "train", lambda *_, **__: 75)
    path = write_suite([{"name": "high", "data": str(high_digits)}])
    assert main(["transfer", str(finished.path), str(path)]) == 75
    assert not (tmp_path / "runs" / "suite" / "transfer.json").exists()
