"""Images that another data set has: 21k images, say, that stand in the 1k validation set.

The other set's index tells size and crc32c of every image; where both agree, bytes are compared.
So both sets must store an image in the same way.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.catalogue import Reader
from data_prep.checking import Checked, stored
from data_prep.duplicates import OUT
from data_prep.options import TOOL, Against, BuildSpec
from data_prep.pool import Progress
from data_prep.population import Population
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.spec import Misuse

_BLOCK_ROWS = 1 << 20


class Twin(NamedTuple):
    """An image of ours, and what the same image is called in another set."""

    row: int
    key: str
    where: str


def open_other(against: Against, spec: BuildSpec) -> Manifest:
    """Return the manifest of another data set, if its images compare with those of `spec`.

    Raises:
        Misuse: it is not the set that was named, or its images were encoded in another way.
    """
    manifest = load_manifest(Path(against.folder))
    if manifest.digest() != against.manifest:
        raise Misuse(
            f"--against {against.folder}: the data set there is another one since this build "
            "began; restore it, or build into an empty folder"
        )
    ours = _encoding(spec.transcode.model_dump(mode="json"), spec.clean.orientation, TOOL)
    turned = str(manifest.clean.get("orientation", "keep"))
    theirs = _encoding(manifest.transcode, turned, manifest.tool)
    if ours != theirs:
        raise Misuse(
            f"--against {against.folder}: its images were stored as {theirs}, those of this "
            f"build as {ours}, so equal images differ in bytes; build one of them like the other"
        )
    return manifest


def find_others(
    population: Population, checked: Checked, side: np.ndarray, spec: BuildSpec
) -> Iterator[Twin]:
    """Yield the images in any split (`side` is not OUT) that one of `spec.against` has.

    Raises:
        Misuse: a set does not compare.
        OSError: an image of it cannot be read.
    """
    reader = Reader(population.containers)
    try:
        for against in spec.against:
            manifest = open_other(against, spec)
            for split in against.splits:
                other = SplitIndex(Path(against.folder), manifest, split)
                where = f"split {split} of data set '{manifest.name}'"
                yield from _find(population, checked, side, reader, other, where)
    finally:
        reader.close()


def _encoding(transcode: Mapping[str, object], orientation: str, tool: str) -> dict[str, object]:
    """Return what decides the bytes; tars made by others count as they are, not transcoded.

    The encoder matters where every image went through it, not for a few that were repaired.
    """
    if transcode.get("kind", "none") == "none":
        return {"kind": "none", "orientation": orientation}
    return {**transcode, "orientation": orientation, "tool": tool}


def _find(
    population: Population,
    checked: Checked,
    side: np.ndarray,
    reader: Reader,
    other: SplitIndex,
    where: str,
) -> Iterator[Twin]:
    keys = _keys_of(other)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    with Progress(f"compare with {where}", "images", len(side)) as progress:
        for start in range(0, len(side) if len(keys) else 0, _BLOCK_ROWS):
            block = checked.verdicts[start : start + _BLOCK_ROWS]
            ours = _key(block["size"], block["crc32c"])
            places = np.searchsorted(keys, ours)
            hit = keys[np.minimum(places, len(keys) - 1)] == ours
            hit &= side[start : start + _BLOCK_ROWS] != OUT
            for position in np.flatnonzero(hit).tolist():
                last = np.searchsorted(keys, ours[position], side="right")
                ids = order[places[position] : last].tolist()
                image = stored(reader, population, checked, start + position)
                twin = next((i for i in ids if _image(other, i) == image), None)
                if twin is not None:
                    yield Twin(start + position, other.key(twin), where)
            progress.add(len(block))


def _keys_of(other: SplitIndex) -> np.ndarray:
    keys = [np.zeros(0, np.uint64)]
    for shard in range(len(other.shards)):
        entries = other.arrays(shard)[0]
        keys.append(_key(entries["size"], entries["crc32c"]))
    return np.concatenate(keys)


def _key(size: np.ndarray, crc32c: np.ndarray) -> np.ndarray:
    return (size.astype(np.uint64) << np.uint64(32)) | crc32c


def _image(other: SplitIndex, sample_id: int) -> bytes:
    entry = other.entry(sample_id)
    with other.tar(other.locate(sample_id)[0]).open("rb") as file:
        file.seek(int(entry["offset"]))
        return file.read(int(entry["size"]))
