"""What is known of a data set before a job begins: its manifest, or why it cannot be had now."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.manifest import FILE, Manifest
from pipeline.data.places import is_url
from pipeline.data.sources import open_manifest
from pipeline.jobs import prepare
from pipeline.recipe import DataSpec, Recipe
from pipeline.spec import Failure, Misuse


@dataclass(frozen=True)
class Found:
    """The manifest of a data set, or why it cannot be had now."""

    manifest: Manifest | None
    missing: Misuse | Failure | None = None

    def opened(self) -> Manifest:
        """Return the manifest.

        Raises:
            Misuse, Failure: the reason why it cannot be had.
        """
        if self.manifest is None:
            assert self.missing is not None
            raise self.missing
        return self.manifest


def look(recipe: Recipe) -> Found:
    """Look for the manifest of the shards, in their folder or at their URL.

    Raises:
        Misuse, Failure: it is in its folder, but broken.
    """
    data = recipe.data
    try:
        return Found(_manifest(data))
    except (Misuse, Failure) as error:
        if not is_url(data.path) and (Path(data.path) / FILE).is_file():
            raise
        return Found(None, error)


def _manifest(data: DataSpec) -> Manifest:
    """Open a manifest; that of a URL leaves nothing behind, and the node's disk is not needed."""
    if not is_url(data.path) or not data.shards.folder:
        return open_manifest(data.path, data.shards)
    with tempfile.TemporaryDirectory(prefix="manifest-") as folder:
        return open_manifest(data.path, data.shards.model_copy(update={"folder": folder}))


def num_train(recipe: Recipe, found: Found) -> int:
    """Return the training split's size: the manifest's, else the data card's.

    Raises:
        Misuse: there is neither.
        Failure: the data card has none, and the URL of the shards does not answer.
    """
    if found.manifest is None and recipe.data.num_train is not None:
        return recipe.data.num_train
    if isinstance(found.missing, Misuse) and not is_url(recipe.data.path):
        raise Misuse(
            f"field 'data.path' is '{recipe.data.path}': no manifest.json there, and no data card "
            "says how many images there will be; build shards with `python -m data_prep build`, "
            "or set data.num_train"
        )
    return prepare.num_train(recipe, found.opened())
