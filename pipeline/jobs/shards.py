"""Looks whether all shards are there before training, as some are only read after days.

It takes one stat for each; what is inside them is checked sample by sample as they are read.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.data.index_files import disk_error
from pipeline.data.manifest import Manifest
from pipeline.data.places import is_url
from pipeline.recipe import Recipe
from pipeline.spec import Misuse

NAMED = 5
"""So many wrong shards are named."""


def check_shards(recipe: Recipe, manifest: Manifest, say: Callable[[str], None] = print) -> None:
    """Refuse a folder that lacks shards of the splits in use, or has some of another size.

    Under `loader.bad.policy` budget those to train on are only told to `say`, as their samples
    will be replaced. Shards that are brought from a URL, or staged, are checked on their way.

    Raises:
        Misuse: names the first wrong shards, their number and the remedy.
        Failure: the disk does not say.
    """
    data = recipe.data
    if is_url(data.path) or data.shards.kind == "stage":
        return
    folder = Path(data.path)
    trained = [data.train] if data.stream is None else []
    if recipe.loader.bad.policy == "budget":
        if wrong := list(_wrong(folder, manifest, trained)):
            say(f"{_told(folder, wrong)}; their samples are replaced, within the budget")
        trained = []
    if wrong := list(_wrong(folder, manifest, [*trained, data.eval])):
        raise Misuse(
            f"{_told(folder, wrong)}; run `python -m data_prep verify {folder}`, then restore or "
            "build these shards again"
        )


def _wrong(folder: Path, manifest: Manifest, splits: Sequence[str]) -> Iterator[str]:
    """Tell of each shard of these splits that is missing, or larger or smaller than it was."""
    for split in dict.fromkeys(splits):
        for shard in manifest.split(split).shards:
            path = folder / shard.file
            try:
                size = path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                yield f"{shard.file} is missing"
                continue
            except OSError as error:
                raise disk_error(path, error) from None
            if size != shard.num_bytes:
                yield f"{shard.file} has {size:,} bytes instead of {shard.num_bytes:,}"


def _told(folder: Path, wrong: Sequence[str]) -> str:
    named, more = ", ".join(wrong[:NAMED]), len(wrong) - NAMED
    named += f" and {more:,} more" if more > 0 else ""
    return f"{folder}: not all shards are as the manifest says: {named}"
