"""Small images, trees and tars, made on the spot."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.build import build
from data_prep.options import BuildSpec
from data_prep.sources import Source
from data_prep.stages import EVAL_PREFIX, Job
from pipeline.data.manifest import Manifest

MakeImage = Callable[..., bytes]
MakeTree = Callable[..., Path]


def draw(seed: int = 0, width: int = 16, height: int = 12, mode: str = "RGB") -> Image.Image:
    """Noise, different for each seed."""
    rng = np.random.default_rng(seed)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    return Image.fromarray(rng.integers(0, 256, (height, width, *channels), dtype=np.uint8), mode)


@pytest.fixture(scope="session")
def encode() -> MakeImage:
    """Encode an image: (seed, format, width, height, mode) -> bytes."""

    def make(
        seed: int = 0, kind: str = "JPEG", width: int = 16, height: int = 12, mode: str = "RGB"
    ) -> bytes:
        buffer = io.BytesIO()
        draw(seed, width, height, mode).save(buffer, kind)
        return buffer.getvalue()

    return make


@pytest.fixture
def make_tree(tmp_path: Path, encode: MakeImage) -> MakeTree:
    """Write CLASS/0000.jpg ... for {class: number of images} below tmp_path/NAME."""

    def make(counts: Mapping[str, int], name: str = "raw") -> Path:
        seed = 0
        for folder, count in counts.items():
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = tmp_path / name / folder / f"{number:04d}.jpg"
                path.write_bytes(encode(seed := seed + 1))
        return tmp_path / name

    return make


@pytest.fixture
def make_tar() -> Callable[[Path, Mapping[str, bytes]], Path]:
    """Write a tar (.tar or .tar.gz) of {name: content}."""

    def make(path: Path, files: Mapping[str, bytes]) -> Path:
        with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return make


@pytest.fixture
def run_build(tmp_path: Path) -> Callable[..., Manifest]:
    """Build from a source into tmp_path/OUT with BuildSpec's fields as keywords."""

    def make(
        source: Path,
        out: str = "out",
        workers: int = 1,
        eval_source: Path | None = None,
        **options: object,
    ) -> Manifest:
        spec = BuildSpec.parse({"name": "test", **options}, "test")
        sources = [Source(source)]
        if eval_source is not None:
            sources.append(Source(eval_source, EVAL_PREFIX))
        return build(Job(tuple(sources), tmp_path / out, spec, workers))

    return make


@pytest.fixture
def digests() -> Callable[[Path], dict[str, str]]:
    """Return the sha256 of every file below a folder, but for what tells where it was built."""

    def make(folder: Path) -> dict[str, str]:
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "build.json"
        }

    return make
