"""A transfer suite: the tasks that a pretrained model is judged by, as a file of settings."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from pipeline.spec import Misuse, Spec, load


class TaskSpec(Spec):
    """One task: its data (a card or a folder of shards), own overrides, published top-1."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: str
    overrides: tuple[str, ...] = ()
    published: dict[str, float] = {}


class SuiteSpec(Spec):
    """Tasks that share one finetuning config; `config` is relative to the suite's file.

    `overrides` are of all tasks, a task's own come after them. With `from_scratch` each task is
    also trained from random weights, as a yardstick.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    source: str = ""
    config: str
    runs: str = "runs"
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    from_scratch: bool = False
    tasks: tuple[TaskSpec, ...] = Field(min_length=1)


def load_suite(
    path: Path, only: list[str] | None, overrides: Sequence[str] = ()
) -> tuple[SuiteSpec, Path]:
    """Read a suite and return it, cut down to the tasks in `only`, with its config's path.

    `overrides` change the suite's own settings, as `name=larger` or
    `overrides=[model.name=v2_m,stages.px=480]`.

    Raises:
        Misuse: the file is wrong, or `only` names a task that is not in it.
    """
    suite = SuiteSpec.parse(load(path, overrides), str(path))
    names = [task.name for task in suite.tasks]
    unknown = [name for name in only or [] if name not in names]
    if unknown:
        raise Misuse(f"{path}: no task '{unknown[0]}'; there are: {', '.join(names)}")
    chosen = tuple(task for task in suite.tasks if only is None or task.name in only)
    config = path.parent / suite.config
    return suite.model_copy(update={"tasks": chosen}), config
