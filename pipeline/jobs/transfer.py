"""`pipeline transfer`: finetune one model on every task of a suite and compare.

Each training is an ordinary run with its own folder and tracked run, so the job resumes like any
other: finished trainings are only read. A task whose shards are missing is named in the result.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.places import is_url
from pipeline.jobs.prepare import prepare
from pipeline.jobs.suite import SuiteSpec, TaskSpec, load_suite
from pipeline.jobs.train import train
from pipeline.recipe import Recipe, load_recipe
from pipeline.run.files import read_json, write_json
from pipeline.run.folder import DONE, FAILED
from pipeline.spec import Misuse

WAYS = ("finetuned", "scratch")


@dataclass(frozen=True)
class Cell:
    """One training of the suite: a task, a way to start, a seed."""

    task: TaskSpec
    way: str
    seed: int

    def overrides(self, suite: SuiteSpec, model: str) -> list[str]:
        """Return what makes the suite's config this training."""
        start = f"init={{from: '{model}'}}" if self.way == "finetuned" else "init=null"
        return [
            *suite.overrides,
            *self.task.overrides,
            f"name={suite.name}-{self.task.name}-{self.way}-{self.seed}",
            f"runs={suite.runs}",
            f"data={self.task.data}",
            f"seed={self.seed}",
            "tracking.register_as=null",
            start,
        ]


def transfer(model: str, path: Path, only: list[str] | None, overrides: Sequence[str] = ()) -> int:
    """Train all cells of the suite, print the table and write transfer.json.

    `overrides` change the suite's own settings, not those of its config.

    Raises:
        Misuse: the suite, the config or an override is wrong.
    """
    suite, config = load_suite(path, only, overrides)
    results: list[dict[str, Any]] = []
    missing = False
    for task in suite.tasks:
        scores: dict[str, list[float]] = {}
        try:
            for way in WAYS if suite.from_scratch else WAYS[:1]:
                for seed in suite.seeds:
                    cell = Cell(task, way, seed)
                    code, top1 = _train(config, cell.overrides(suite, model))
                    if code != DONE:
                        return code
                    scores.setdefault(way, []).append(top1)
        except MissingData as error:
            missing = True
            results.append({"task": task.name, "missing": str(error)})
            continue
        results.append({"task": task.name, "published": task.published, "top1": scores})
    folder = Path(suite.runs).resolve() / suite.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "transfer.json", {"suite": suite.name, "model": model, "tasks": results})
    _print(model, results, folder / "transfer.json")
    return FAILED if missing else DONE


class MissingData(Misuse):
    """The shards of a task are not there."""


def _train(config: Path, overrides: list[str]) -> tuple[int, float]:
    """Train one cell, unless it is done already; returns the exit code and top-1."""
    recipe = load_recipe(config, overrides)
    folder = Path(recipe.data.path)
    if not is_url(recipe.data.path) and not (folder / "manifest.json").is_file():
        raise MissingData(f"no shards in {recipe.data.path}; make them with `python -m data_prep`")
    if not _is_done(recipe):
        code = train(config, overrides, accept_changes=False)
        if code != DONE:
            return code, 0.0
    return DONE, float(_evaluation(recipe)["top1"])


def _is_done(recipe: Recipe) -> bool:
    total = prepare(recipe).plan.total_steps
    return _evaluation(recipe).get("step") == total == recipe.folder.latest_step()


def _evaluation(recipe: Recipe) -> dict[str, Any]:
    return read_json(recipe.folder.evaluation) or {}


def _print(model: str, results: list[dict[str, Any]], path: Path) -> None:
    print(f"\ntransfer of {model} (top-1, mean and deviation over seeds)")
    for result in results:
        if "missing" in result:
            print(f"  {result['task']:<24} {result['missing']}")
            continue
        cells = [f"{way} {_mean(values)}" for way, values in result["top1"].items()]
        cells += [f"published ({who}) {value}" for who, value in result["published"].items()]
        print(f"  {result['task']:<24} {'   '.join(cells)}")
    print(f"written to {path}", flush=True)


def _mean(values: list[float]) -> str:
    deviation = f" +- {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f} %{deviation}"
