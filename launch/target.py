"""What is to be run: a training with its folder, plan and data set, or another pipeline job.

Only this file of the launcher knows recipes. Nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.ranks import idle_note, largest_world
from pipeline.data.manifest import Manifest
from pipeline.data.places import is_url
from pipeline.jobs.look import Found, look, num_train
from pipeline.jobs.prepare import plan_text
from pipeline.plan.plan import Plan
from pipeline.recipe import Recipe, load_recipe
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse

JOBS = ("train", "evaluate", "transfer", "export", "register", "sync", "report")
"""The pipeline's jobs that may be supervised; all but `train` are one process."""


@dataclass(frozen=True)
class Training:
    """A training as the launcher sees it."""

    recipe: Recipe
    plan: Plan
    found: Found

    @property
    def folder(self) -> RunFolder:
        return self.recipe.folder

    @property
    def shards(self) -> Path | None:
        """Return the folder of shards that every rank must see; None where a URL has them."""
        path = self.recipe.data.path
        return None if is_url(path) else Path(path).absolute()

    @property
    def micro_batches(self) -> list[int]:
        return [stage.settings.micro_batches for stage in self.plan.stages]

    def largest_world(self, capacity: int) -> int:
        """Return the most ranks, at most `capacity`, that can share the work."""
        return largest_world(capacity, self.micro_batches, self.recipe.model.bn_group)

    def idle_note(self, capacity: int) -> str:
        """Say which of `capacity` places stay empty and what would fill them; empty where none."""
        return idle_note(capacity, self.micro_batches, self.recipe.model.bn_group)

    def plan_text(self) -> str:
        """Return the plan as `python -m pipeline plan` prints it."""
        return plan_text(self.recipe, self.plan, self.found.manifest)

    def check_data(self) -> Manifest:
        """Refuse a data set that is missing or lacks a split; returns its manifest.

        Raises:
            Misuse: names the folder and how to make it.
            Failure: the URL of the shards does not answer.
        """
        manifest = self.found.opened()
        manifest.split(self.recipe.data.train)
        manifest.split(self.recipe.data.eval)
        return manifest


def check_job(arguments: Sequence[str]) -> None:
    """Refuse what is no job of the pipeline.

    Raises:
        Misuse: lists those that there are.
    """
    if not arguments or arguments[0] not in JOBS:
        given = arguments[0] if arguments else ""
        raise Misuse(f"command '{given}': expected one of {', '.join(JOBS)}")


def training(arguments: Sequence[str]) -> Training:
    """Return what `train CONFIG [key=value ...] [--flag]` would train.

    Raises:
        Misuse: the config is missing or wrong, nothing says how large the data set is, or
            collectives are less patient than the watchdog.
        Failure: the URL of the shards does not answer, and no data card says it either.
    """
    words = [word for word in arguments[1:] if not word.startswith("--")]
    if not words:
        raise Misuse("train: the config is missing; for example configs/v2_s_1k.yaml")
    recipe = load_recipe(Path(words[0]), words[1:])
    recipe.check_patience()
    found = look(recipe)
    return Training(recipe, recipe.plan(num_train(recipe, found)), found)
