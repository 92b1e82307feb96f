"""Small data sets as a build leaves them, and tars as others write them, made on the spot."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from PIL import Image

from data_prep.record import write_info
from data_prep.tarwrite import TarWriter
from data_prep.write import index_entries, sha256_of, write_index
from pipeline.data.labels import LabelSpace
from pipeline.data.manifest import Manifest, Shard, Split, save_manifest
from pipeline.run.files import write_json
from pipeline.spec import canonical_json

TAR = "train/shard-000000.tar"


class One(NamedTuple):
    """A sample to write."""

    key: str
    labels: tuple[int, ...]
    image: bytes
    suffix: str = "jpg"


def encode(seed: int = 0, kind: str = "JPEG", width: int = 16, height: int = 12) -> bytes:
    """Return an image of noise, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def small_set(folder: Path, **fields: Any) -> Manifest:
    """Write a finished set: 5 train samples in 2 shards, 2 to evaluate on; classes cat and dog."""
    train = [One(f"{n:08d}-cat-{n}", (n % 2,), encode(n)) for n in range(5)]
    train[1] = train[1]._replace(labels=(1, 0))
    train[2] = train[2]._replace(image=encode(2, "PNG"), suffix="png")
    held = [One(f"{n:08d}-dog-{n}", (n,), encode(10 + n, width=30)) for n in range(2)]
    return write_set(folder, {"train": [train[:3], train[3:]], "eval": [held]}, **fields)


def write_set(
    folder: Path,
    splits: Mapping[str, Sequence[Sequence[One]]],
    classes: tuple[str, ...] = ("cat", "dog"),
    **fields: Any,
) -> Manifest:
    """Write shards, their indexes and all files that a build leaves beside them."""
    written = {}
    for name, shards in splits.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        files = [f"{name}/shard-{number:06d}.tar" for number in range(len(shards))]
        counts = np.zeros(len(classes), int)
        np.add.at(counts, [label for shard in shards for one in shard for label in one.labels], 1)
        records = [_write_shard(folder, *both) for both in zip(files, shards, strict=True)]
        written[name] = Split(shards=tuple(records), class_counts=tuple(counts.tolist()))
    line = {"what": "rejected", "file": "bad.jpg", "kind": "truncated", "reason": "ends early"}
    rejects = (canonical_json(line) + "\n").encode()
    (folder / "rejects.jsonl").write_bytes(rejects)
    plan = {"tool": "data_prep 2", "options": {"name": "small"}, "sources": ["/data/é"]}
    digest = hashlib.sha256(canonical_json(plan).encode()).hexdigest()
    write_json(folder / "build.json", {"digest": digest, **plan})
    values = {
        "name": "small",
        "tool": "data_prep 2",
        "layout": "folders",
        "labels": LabelSpace(name="small", classes=classes),
        "splits": written,
        "bytes_after": sum(len(one.image) for s in splits.values() for its in s for one in its),
        "rejects_sha256": hashlib.sha256(rejects).hexdigest(),
        "info_sha256": write_info(folder, written),
        **fields,
    }
    manifest = Manifest.parse(values, "test")
    save_manifest(folder, manifest)
    return manifest


def _write_shard(folder: Path, file: str, samples: Sequence[One]) -> Shard:
    places = []
    with (folder / file).open("wb") as stream:
        writer = TarWriter(stream)
        for one in samples:
            writer.add(f"{one.key}.cls", str(one.labels[0]).encode())
            several = json.dumps({"labels": one.labels}).encode() if len(one.labels) > 1 else b""
            members = {one.suffix: one.image} | ({"json": several} if several else {})
            where = {
                name: writer.add(f"{one.key}.{name}", members[name]) for name in sorted(members)
            }
            places.append(where[one.suffix])
        sha256 = writer.finish()
    sizes = np.array([Image.open(io.BytesIO(one.image)).size for one in samples])
    crc32c = np.array([google_crc32c.value(one.image) for one in samples], np.uint32)
    entries = index_entries(places, [len(one.labels) for one in samples], crc32c, sizes)
    return write_index(folder, file, entries, [one.labels for one in samples], sha256)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar as others do, its members in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read_tar(path: Path) -> list[tuple[str, bytes]]:
    """Return the members of a tar."""
    with tarfile.open(path) as tar:
        files = ((info.name, tar.extractfile(info)) for info in tar)
        return [(name, file.read()) for name, file in files if file is not None]


def vouch(folder: Path, manifest: Manifest, split: str = "train", number: int = 0) -> None:
    """Write the digest of a shard that was changed into a valid manifest: a lie that agrees."""
    its = manifest.split(split)
    shards = list(its.shards)
    update = {"sha256": sha256_of(folder / shards[number].file)}
    shards[number] = shards[number].model_copy(update=update)
    changed = {**manifest.splits, split: its.model_copy(update={"shards": tuple(shards)})}
    save_manifest(folder, manifest.model_copy(update={"splits": changed}))
