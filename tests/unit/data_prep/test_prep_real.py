"""Real images: ImageNet and CIFAR-10 as tars, read back by webdataset and by timm."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data_prep.build import Job, build
from data_prep.options import BuildSpec
from data_prep.verify import verify
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Manifest


def _build(source: Path, out: Path, workers: int, **options: object) -> Manifest:
    spec = BuildSpec.parse({"name": "real", **options}, "test")
    return build(Job(source, None, out, spec, workers))


@pytest.fixture(scope="module")
def some_imagenet(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty real images of 110 KB, as 4 shards."""
    folder = tmp_path_factory.mktemp("imagenet")
    with (
        tarfile.open(real_data / "imagenet-sample.tar") as tar,
        tarfile.open(folder / "some.tar", "w") as some,
    ):
        for _ in range(40):
            info = tar.next()
            assert info is not None
            some.addfile(info, tar.extractfile(info))
    _build(folder / "some.tar", folder / "shards", 1, shard_samples=10)
    return folder / "shards"


def test_imagenet_files_are_whole_in_the_shards(some_imagenet: Path, real_data: Path) -> None:
    from pipeline.data.manifest import load_manifest

    manifest = load_manifest(some_imagenet)
    assert manifest.num_classes == 40 and manifest.rejected.count == 0
    assert manifest.labels.classes[0] == "n01440764"
    assert verify(some_imagenet, 1, decode=True) == (40, [])
    with tarfile.open(real_data / "imagenet-sample.tar") as tar:
        first = tar.next()
        assert first is not None
        stream = tar.extractfile(first)
        assert stream is not None
        tench = stream.read()
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
    reader = readers.ReaderWds(
        root=str(some_imagenet / "train"), name="", split="shard-{000000..000003}.tar|40"
    )
    found = Counter(int(target) for _, target in reader)
    assert found == Counter(range(40))


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
