"""Real images: ImageNet and CIFAR-10 in archives, built, verified, killed, read back by timm."""

import io
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from data_prep.build import build
from data_prep.options import BuildSpec
from data_prep.sources import Source
from data_prep.stages import Job
from data_prep.verify import verify
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Manifest, load_manifest
from tests.unit.data_prep.killing import build_undisturbed, build_with_kills

Digests = Callable[[Path], dict[str, str]]


def _build(source: Path, out: Path, workers: int, **options: object) -> Manifest:
    spec = BuildSpec.parse({"name": "real", **options}, "test")
    return build(Job((Source(source),), out, spec, workers))


def _real_images(real_data: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of real ImageNet files."""
    with tarfile.open(real_data / "imagenet-sample.tar") as tar:
        for info in tar:
            stream = tar.extractfile(info)
            assert stream is not None
            yield info.name, stream.read()
            if not (count := count - 1):
                return


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _class_tar(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add(tar, name, data)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def some_imagenet(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty real images of 110 KB, as 4 shards."""
    folder = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(folder / "some.tar", "w") as some:
        for name, data in _real_images(real_data, 40):
            _add(some, name, data)
    _build(folder / "some.tar", folder / "shards", 1, shard_samples=10)
    return folder / "shards"


def test_imagenet_files_are_whole_in_the_shards(some_imagenet: Path, real_data: Path) -> None:
    manifest = load_manifest(some_imagenet)
    assert manifest.num_classes == 40 and manifest.rejected.count == 0
    assert manifest.labels.classes[0] == "n01440764"
    assert verify(some_imagenet, 1, decode=True) == (40, [])
    _, tench = next(_real_images(real_data, 1))
    index = SplitIndex(some_imagenet, manifest, "train")
    (sample_id,) = [i for i in range(40) if index.labels(i) == (0,)]
    assert index.key(sample_id).endswith("n01440764_tench")
    entry = index.entry(sample_id)
    data = index.tar(index.locate(sample_id)[0]).read_bytes()
    assert data[int(entry["offset"]) : int(entry["offset"]) + len(tench)] == tench
    assert Image.open(io.BytesIO(tench)).size == (entry["width"], entry["height"])


def test_timm_reads_the_shards(some_imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = pytest.importorskip("timm.data.readers.reader_wds")
    import webdataset

    # In its secure mode webdataset opens no local file by name; timm does not use that mode.
    monkeypatch.setattr(webdataset.utils, "enforce_security", False)
    by_name = readers.ReaderWds(root=str(some_imagenet), name="", split="train")
    by_files = readers.ReaderWds(
        root=str(some_imagenet / "train"), name="", split="shard-{000000..000003}.tar|40"
    )
    for reader in (by_name, by_files):
        assert Counter(int(target) for _, target in reader) == Counter(range(40))


def _pack_train(real_data: Path, path: Path, count: int) -> None:
    """Pack real files as ImageNet-1k's train tar: a tar of class tars."""
    with tarfile.open(path, "w") as tar:
        for name, data in _real_images(real_data, count):
            _add(tar, f"{name.partition('_')[0]}.tar", _class_tar(name, data))


def _pack_winter21(real_data: Path, path: Path, count: int) -> None:
    """Pack real files as ImageNet-21k's release of 2021: class tars in a folder in a gzip."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in _real_images(real_data, count):
            wnid = name.partition("_")[0]
            _add(tar, f"winter21_whole/{wnid}.tar", _class_tar(name, data))


ARCHIVES = {
    "imagenet1k": ("ILSVRC2012_img_train.tar", _pack_train, 300, 5),
    "imagenet21k": ("winter21_whole.tar.gz", _pack_winter21, 800, 10),
}
"""For each layout: the archive, how it is packed, of how many of the 800 images, and the kills."""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ARCHIVES)
def test_real_images_from_any_workers_and_after_kills(
    layout: str, real_data: Path, tmp_path: Path, digests: Digests, repo: Path
) -> None:
    name, pack, count, kills = ARCHIVES[layout]
    pack(real_data, tmp_path / name, count)
    words = [tmp_path / name, "--layout", layout, "--shard-mb", 2]
    whole, out = tmp_path / "whole", tmp_path / "out"
    took_s = build_undisturbed([*words, "--workers", 2], whole, repo)
    for workers in (1, 5):
        build_undisturbed([*words, "--workers", workers], out, repo)
        assert digests(out) == digests(whole), f"{workers} workers give other bytes than 2"
        shutil.rmtree(out)
    build_with_kills([*words, "--workers", 2], out, repo, took_s, kills)
    assert digests(out) == digests(whole)
    assert verify(out, 2, decode=True) == (count, [])
    manifest = load_manifest(out)
    assert manifest.num_classes == count and len(manifest.split("train").shards) > 10
    assert manifest.split("train").class_counts == (1,) * count
    assert not manifest.rejected.count and manifest.bytes_before == manifest.bytes_after
    assert _images_of(out, manifest) == {
        sha256(data).hexdigest() for _, data in _real_images(real_data, count)
    }


def _images_of(folder: Path, manifest: Manifest) -> set[str]:
    found = set()
    for shard in manifest.split("train").shards:
        with tarfile.open(folder / shard.file) as tar:
            for info in tar:
                stream = tar.extractfile(info)
                assert stream is not None
                if info.name.endswith(".jpg"):
                    found.add(sha256(stream.read()).hexdigest())
    return found


@pytest.mark.slow
def test_the_whole_of_cifar10(real_data: Path, tmp_path: Path) -> None:
    if not (real_data / "cifar10-jpeg.tar.gz").is_file():
        pytest.skip("no cifar10-jpeg.tar.gz")
    out = tmp_path / "cifar10"
    manifest = _build(real_data / "cifar10-jpeg.tar.gz", out, 2, shard_samples=10_000)
    assert manifest.split("train").class_counts == (5000,) * 10
    assert manifest.split("eval").class_counts == (1000,) * 10
    assert manifest.labels.classes[:3] == ("airplane", "automobile", "bird")
    assert manifest.rejected.count == manifest.repaired.count == 0
    assert verify(out, 2) == (60_000, [])
    assert not (out / ".build").exists()
