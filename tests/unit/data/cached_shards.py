"""Shards of a server, read through a cache."""

from pathlib import Path

from pipeline.data.cached_places import CachedPlaces
from pipeline.data.places import PlacesSpec
from pipeline.data.reader import ShardReader
from pipeline.data.sources import open_index, open_manifest


def tars(folder: Path) -> list[str]:
    """Return the shards that lie in a cache."""
    return sorted(path.name for path in folder.rglob("*.tar"))


def reader_of(url: str, folder: Path, max_gb: float = 1.0, **settings) -> ShardReader:
    """Return a reader of the train split at `url`."""
    settings = {"retries": 2, "timeout_s": 2, "ahead_steps": 0, **settings}
    spec = PlacesSpec(folder=str(folder), max_gb=max_gb, **settings)
    return ShardReader(open_index(url, spec, open_manifest(url, spec), "train"))


def places_of(reader: ShardReader) -> CachedPlaces:
    """Return the cache that a reader asks."""
    assert isinstance(reader.index.places, CachedPlaces)
    return reader.index.places
