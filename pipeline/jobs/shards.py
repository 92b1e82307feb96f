"""Looks whether all shards are there before training, as some are only read after days.

It takes three stats for each; what is inside them is checked sample by sample as they are read. The
indexes of the split to evaluate on are read: it is small, and the first evaluation may be far off.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.data.index import SplitIndex
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
    will be replaced; their indexes must be there. Shards that are brought from a URL, or staged,
    are checked on their way.

    Raises:
        Misuse: names the first wrong shards, their number and the remedy; or the index of an
            evaluation shard that cannot be used.
        Failure: the disk does not say.
    """
    data = recipe.data
    if is_url(data.path) or data.shards.kind == "stage":
        return
    folder = Path(data.path)
    trained = [data.train] if data.stream is None else []
    indexed = [*trained, data.eval]
    if recipe.loader.bad.policy == "budget":
        if wrong := list(_wrong(folder, manifest, trained)):
            say(f"{_told(folder, wrong)}; their samples are replaced, within the budget")
        trained = []
    wrong = list(_wrong(folder, manifest, [*trained, data.eval]))
    if wrong := wrong or list(_without_index(folder, manifest, indexed)):
        raise Misuse(
            f"{_told(folder, wrong)}; run `python -m data_prep verify {folder}`, then restore or "
            "build these shards again"
        )
    scored = SplitIndex(folder, manifest, data.eval)
    for number in range(len(scored.shards)):
        scored.arrays(number)


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


def _without_index(folder: Path, manifest: Manifest, splits: Sequence[str]) -> Iterator[str]:
    """Tell of each file of an index of these splits that is missing."""
    for split in dict.fromkeys(splits):
        for shard in manifest.split(split).shards:
            for file in (shard.index_file, shard.labels_file):
                if not (folder / file).exists():
                    yield f"{file} is missing"


def _told(folder: Path, wrong: Sequence[str]) -> str:
    named, more = ", ".join(wrong[:NAMED]), len(wrong) - NAMED
    named += f" and {more:,} more" if more > 0 else ""
    return f"{folder}: not all shards are as the manifest says: {named}"
