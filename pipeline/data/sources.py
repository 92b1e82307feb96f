"""From what `data.path` says, a folder or a URL, to a split whose samples can be read on this node.

1. The manifest: read in its folder, or brought from the URL and checked by its own digest.
2. The indexes of the split: brought and checked by the manifest's digests.
3. The shards: read where they lie, all copied before training, or brought when they are needed.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.data.cache import ShardCache
from pipeline.data.cached_places import CachedPlaces, bring_index_part, index_parts
from pipeline.data.fetch import Expected, fetch_file
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import FILE, Manifest, Shard, load_manifest, save_manifest
from pipeline.data.places import GB, PlacesSpec, ShardGone, is_url
from pipeline.data.remote import Source, source_of
from pipeline.data.staging import Say, rounded_gb, stage
from pipeline.spec import Failure, Misuse

MANIFEST_BYTES = 1 << 30
INDEX_THREADS = 16
"""Connections for indexes: they are small, so most of the time goes into waiting."""
STAGED_KEEP = 512
_MANIFEST_REMEDY = (
    "correct the URL, or make shards there: `python -m data_prep build`, or `index` for tars made "
    "by others, writes manifest.json; upload its folder as a whole"
)


def open_manifest(path: str, spec: PlacesSpec) -> Manifest:
    """Return the manifest of a folder or URL of shards.

    Raises:
        Misuse: there is none, or it does not match its own digest.
        Failure: the server of the URL does not answer, or the disk returns errors.
    """
    if not is_url(path):
        return load_manifest(Path(path))
    source, expected = source_of(path, spec), Expected(None, None, MANIFEST_BYTES)
    root = _root(path, spec)
    for last in (False, True):  # the first may have been cut on its way
        with _naming(root), tempfile.TemporaryDirectory(prefix=".manifest-", dir=root) as folder:
            try:
                fetch_file(source, FILE, Path(folder) / FILE, expected, spec)
            except ShardGone as error:
                told = f"field 'data.path' is '{path}': {error}; {_MANIFEST_REMEDY}"
                raise Misuse(told) from None
            try:
                return load_manifest(Path(folder))
            except Misuse as error:
                if last:
                    told = str(error).removeprefix(f"{Path(folder) / FILE}: ")
                    raise Misuse(f"{source.name(FILE)}: {told}") from None
    raise AssertionError("unreachable")


def open_index(
    path: str,
    spec: PlacesSpec,
    manifest: Manifest,
    split: str,
    lanes: int = 1,
    window: int = 1,
    say: Say = print,
) -> SplitIndex:
    """Return a split that can be read on this node; brings its indexes, and stages its shards.

    Args:
        path: as `data.path` says it, a folder or URL.
        spec: how shards come to this node.
        manifest: of `open_manifest`.
        split: its name there.
        lanes: of the order, those that the processes of this node read together.
        window: samples of a lane that are shuffled together; 0 is a whole lane.
        say: is told how far staging is.

    Raises:
        Misuse: the cache is too small for the lanes, or for all shards where they are staged.
        ShardGone, Failure: the source lacks files or does not answer, or the disk has no room.
    """
    if spec.kind == "direct" and is_url(path):
        raise Misuse(f"field 'data.shards.kind' is direct, but '{path}' is a URL: use cache")
    if not is_url(path) and spec.kind in ("auto", "direct"):
        return SplitIndex(Path(path), manifest, split)
    root, source = _root(path, spec), source_of(path, spec)
    home = root / f"{manifest.name}-{manifest.digest()[:12]}"
    shards, staged = manifest.split(split).shards, spec.kind == "stage"
    with _naming(root):
        _mirror(source, shards, home, spec)
        save_manifest(home, manifest)
        cache = ShardCache(root, spec.max_bytes)
        places = CachedPlaces(source, home, shards, cache, spec, STAGED_KEEP if staged else 1)
        if staged:
            stage(places, f"split '{split}' of {path}", say)
        else:
            _check_lanes(cache, shards, lanes, window, ahead=spec.ahead_steps > 0)
    return SplitIndex(home, manifest, split, places)


def make_ready(
    path: str, spec: PlacesSpec, manifest: Manifest, splits: Sequence[str], say: Say = print
) -> None:
    """Bring what can be brought before training: the indexes of a URL, and shards to be staged.

    It may take long, so every rank should call it before the ranks begin to wait for each other;
    `open_index` finds everything there.

    Raises:
        Misuse, ShardGone, Failure: as `open_index`.
    """
    for split in splits:
        open_index(path, spec, manifest, split, say=say)


def needed_bytes(shards: Sequence[Shard], lanes: int, window: int) -> int:
    """Return the most bytes of shards that `lanes` windows of `window` samples touch at once."""
    counts = np.array([shard.num_samples for shard in shards], np.int64)
    ends, sizes = np.cumsum(counts), np.cumsum([shard.num_bytes for shard in shards])
    if window == 0 or len(shards) == 0:
        return int(sizes[-1]) if len(shards) else 0
    last = np.searchsorted(ends, np.maximum(ends - 1, 0) + window - 1, side="right")
    before = np.concatenate([[0], sizes[:-1]])
    spans = sizes[np.minimum(last, len(shards) - 1)] - before  # from the end of each shard on
    return int(min(np.sort(spans)[-lanes:].sum(), sizes[-1]))


def _check_lanes(
    cache: ShardCache, shards: Sequence[Shard], lanes: int, window: int, ahead: bool
) -> None:
    """Refuse a cache without room for the window of each lane, and for the next one `ahead`."""
    needed = needed_bytes(shards, lanes * 2 if ahead else lanes, window)
    who = f"the {lanes} lanes of this node" if lanes > 1 else "the one lane of this node"
    if needed > cache.max_bytes:
        raise Misuse(
            f"field 'data.shards.max_gb' is {cache.max_bytes / GB:g}: {who} may have "
            f"{needed / GB:.4g} GB of shards in use at once; set it to {rounded_gb(needed)} or "
            "more, or loader.lanes and loader.window smaller"
        )
    free = shutil.disk_usage(cache.folder).free + cache.used_bytes()
    if needed > free:
        raise Failure(
            f"{cache.folder}: {who} may need {needed / GB:.4g} GB of shards at once, the disk has "
            f"{free / GB:.4g} GB for them; make room or name another data.shards.folder"
        )


def _mirror(source: Source, shards: Sequence[Shard], home: Path, spec: PlacesSpec) -> None:
    """Bring the indexes of all shards that are not there; those that are, are checked when read."""
    wanted = [part for shard in shards for part in index_parts(shard)]
    missing = [(file, expected) for file, expected in wanted if not (home / file).exists()]
    home.mkdir(exist_ok=True)
    with ThreadPoolExecutor(INDEX_THREADS, "indexes") as pool:
        running = [
            pool.submit(bring_index_part, source, home, file, expected, spec)
            for file, expected in missing
        ]
        try:
            for future in running:
                future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _root(path: str, spec: PlacesSpec) -> Path:
    if not spec.folder:
        raise Misuse(
            f"field 'data.shards.folder' is empty, but '{path}' is a URL: name a folder on a disk "
            "of the node for the shards that come from there (`pipeline evaluate`: --cache FOLDER)"
        )
    root = Path(spec.folder).absolute()
    with _naming(root):
        root.mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def _naming(root: Path) -> Iterator[None]:
    """Turn what the disk says into an error that names the setting."""
    try:
        yield
    except OSError as error:
        raise Failure(
            f"field 'data.shards.folder' is '{root}': {error.strerror} ({error.filename or root}); "
            "name a folder on a disk of the node that this user may write to"
        ) from error
