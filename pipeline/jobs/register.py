"""`pipeline register` and `promote`: a finished run's package becomes a version, then champion."""

from pathlib import Path

from pipeline.recipe import Recipe, load_recorded
from pipeline.run.files import read_json, write_json
from pipeline.run.folder import DONE, RunFolder
from pipeline.spec import Misuse
from pipeline.tracking.registry import Version, resolve
from pipeline.tracking.registry import promote as promote_version
from pipeline.tracking.registry import register as register_version
from pipeline.tracking.settings import TrackingSpec


def register(path: Path) -> int:
    """Register a finished run's package and print the version.

    Raises:
        Misuse: there is no package yet, or the recipe names no model to register it as.
    """
    folder = RunFolder(path.resolve())
    recipe = load_recorded(folder)
    if recipe.tracking.register_as is None:
        raise Misuse(
            f"{folder.recipe}: field 'tracking.register_as' is null; set it to a model name"
        )
    if not folder.package.is_dir():
        raise Misuse(f"{folder.package}: missing; the run has not finished: train it to the end")
    version = register_package(folder, recipe)
    print(f"registered as {version.uri} (alias candidate)")
    return DONE


def promote(model: str) -> int:
    """Give the alias `champion` to a registered version, once its files are verified again."""
    spec = TrackingSpec()
    version = resolve(model, spec)
    promote_version(version.name, version.version, spec)
    print(f"models:/{version.name}@champion is version {version.version}")
    return DONE


def register_package(folder: RunFolder, recipe: Recipe) -> Version:
    """Register the package and note the version in the run's folder; idempotent."""
    assert recipe.tracking.register_as is not None
    facts = read_json(folder.package / "facts.json") or {}
    tags = {
        "data.digest": facts.get("data_digest"),
        "recipe.digest": facts.get("recipe_digest"),
        "parent": facts.get("parent"),
        "metric.top1": facts.get("top1"),
        "commit": facts.get("commit"),
    }
    version = register_version(
        folder, recipe.tracking, {key: str(value) for key, value in tags.items() if value}
    )
    write_json(
        folder.path / "registered.json",
        {
            "name": version.name,
            "version": version.version,
            "uri": version.uri,
            "digest": version.digest,
            "parent": facts.get("parent"),
        },
    )
    return version
