"""Small real shards for the data room: JPEGs in tars with index and manifest, and fake plans."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from pipeline.data import fetch
from pipeline.data.index import ENTRY, SplitIndex
from pipeline.data.labels import LabelSpace
from pipeline.data.manifest import Manifest, Shard, Split, load_manifest, save_manifest
from tests.unit.data.faulty_server import FaultyServer, serving
from tests.unit.data.one_file import FILE, SIZE

NUM_CLASSES = 10


@dataclass(frozen=True)
class FakeSettings:
    """Settings of a step, as the loader sees them."""

    px: int = 16
    randaugment: float = 5.0
    micro_batches: int = 4


@dataclass(frozen=True)
class FakePlan:
    """A plan of stages (first step, settings); the last one runs to the end."""

    total_steps: int = 10**9
    stages: tuple[tuple[int, FakeSettings], ...] = ((0, FakeSettings()),)

    def at(self, step: int) -> FakeSettings:
        assert 0 <= step < self.total_steps
        return [settings for first, settings in self.stages if first <= step][-1]


@dataclass(frozen=True)
class Shards:
    """A folder of shards and the manifest that belongs to it."""

    folder: Path
    manifest: Manifest

    def index(self, split: str = "train") -> SplitIndex:
        return SplitIndex(self.folder, self.manifest, split)


def jpeg(seed: int, width: int = 40, height: int = 32) -> bytes:
    """Return a smooth random picture: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tar(path: Path, samples: list[dict[str, bytes]]) -> None:
    """Write a plain WebDataset tar; each sample has `key` and its members by suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for sample in samples:
            for suffix, data in sample.items():
                if suffix != "key":
                    _add(tar, f"{sample['key'].decode()}.{suffix}", data)


def _index_tar(path: Path, labels: list[tuple[int, ...]]) -> None:
    entries = np.zeros(len(labels), ENTRY)
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.endswith(".jpg")]
    raw = path.read_bytes()
    start = 0
    for entry, member, own in zip(entries, members, labels, strict=True):
        data = raw[member.offset_data : member.offset_data + member.size]
        entry["offset"], entry["header"] = member.offset_data, member.offset
        entry["size"] = member.size
        entry["crc32c"] = google_crc32c.value(data)
        entry["label_start"], entry["num_labels"] = start, len(own)
        entry["width"], entry["height"] = 40, 32
        start += len(own)
    stem = path.with_suffix("")
    np.save(f"{stem}.idx.npy", entries)
    np.save(f"{stem}.lab.npy", np.array([n for own in labels for n in own], "<i4"))


def _record(folder: Path, path: Path, num_samples: int) -> Shard:
    def digest(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest()

    stem = path.with_suffix("")
    return Shard(
        file=str(path.relative_to(folder)),
        num_samples=num_samples,
        num_bytes=path.stat().st_size,
        sha256=digest(path),
        index_sha256=digest(Path(f"{stem}.idx.npy")),
        labels_sha256=digest(Path(f"{stem}.lab.npy")),
    )


def write_shards(
    folder: Path,
    sizes: list[int],
    labels: Callable[[int], tuple[int, ...]] = lambda sample_id: (sample_id % NUM_CLASSES,),
    images: Callable[[int], bytes] = jpeg,
) -> Shards:
    """Write shards of the given sizes; sample `id` holds `images(id)` and `labels(id)`."""
    shards, sample_id = [], 0
    for number, size in enumerate(sizes):
        path = folder / "train" / f"shard-{number:06d}.tar"
        ids = range(sample_id, sample_id + size)
        samples = [
            {"key": f"s{i:05d}".encode(), "jpg": images(i), "cls": str(labels(i)[0]).encode()}
            for i in ids
        ]
        write_tar(path, samples)
        _index_tar(path, [labels(i) for i in ids])
        shards.append(_record(folder, path, size))
        sample_id += size
    space = LabelSpace(name="test", classes=tuple(f"c{i}" for i in range(NUM_CLASSES)))
    manifest = Manifest(
        name="test",
        tool="tests",
        labels=space,
        splits={"train": Split(shards=tuple(shards), class_counts=(1,) * NUM_CLASSES)},
    )
    save_manifest(folder, manifest)
    return Shards(folder, load_manifest(folder))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """103 samples in 7 shards of very different sizes, to be read only."""
    return write_shards(tmp_path_factory.mktemp("shards"), [3, 40, 7, 20, 1, 24, 8])


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Shards]:
    """Write shards of one's own into a fresh folder."""
    return lambda *args, **kwargs: write_shards(tmp_path / "shards", *args, **kwargs)


@pytest.fixture
def make_tar() -> Callable[[Path, list[dict[str, bytes]]], None]:
    return write_tar


@pytest.fixture
def make_jpeg() -> Callable[..., bytes]:
    return jpeg


@pytest.fixture
def fake() -> Any:
    """The fake plan's classes: `fake.plan(total_steps, stages)`, `fake.settings(px, ...)`."""

    class Fake:
        plan = FakePlan
        settings = FakeSettings

    return Fake


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again almost at once, and ask servers on this host without a proxy."""
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(shards) -> Iterator[FaultyServer]:
    """Serve `shards`."""
    with serving(shards.folder) as state:
        yield state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the place of a cache."""
    return tmp_path / "cache"


@pytest.fixture
def content() -> bytes:
    """Return the bytes of the one file of `web`."""
    return np.random.default_rng(0).bytes(SIZE)


@pytest.fixture
def web(tmp_path: Path, content: bytes) -> Iterator[FaultyServer]:
    """Serve one file."""
    path = tmp_path / "served" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with serving(tmp_path / "served") as state:
        yield state


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return where the one file is to be brought."""
    return tmp_path / "here" / FILE
