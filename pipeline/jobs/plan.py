"""`pipeline plan`: print what a config means, before anything is there to run it on."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.manifest import load_manifest
from pipeline.jobs import prepare
from pipeline.recipe import Recipe, load_recipe
from pipeline.run.folder import DONE
from pipeline.spec import Misuse


def plan(config: Path, overrides: Sequence[str]) -> int:
    """Print the plan of a config; without the shards, the data card's counts are used."""
    recipe = load_recipe(config, overrides)
    print(prepare.plan_text(recipe, recipe.plan(num_train(recipe))))
    return DONE


def num_train(recipe: Recipe) -> int:
    """Return the training split's size: the manifest's, else the data card's.

    Raises:
        Misuse: there is neither.
    """
    folder = Path(recipe.data.path)
    if (folder / "manifest.json").is_file():
        return prepare.num_train(recipe, load_manifest(folder))
    if recipe.data.num_train is None:
        raise Misuse(
            f"field 'data.path' is '{recipe.data.path}': no manifest.json there, and no data card "
            "says how many images there will be; build shards with `python -m data_prep build`, "
            "or set data.num_train"
        )
    return recipe.data.num_train
