"""Whole builds from archives as they are handed out, read back as training would."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.verify import verify
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Holdout, Manifest, load_manifest
from tests.unit.data_prep.official_archives import write
from tests.unit.data_prep.test_prep_cifar import BATCHES, CLASSES, LABELS, cifar10_python

MakeTree = Callable[..., Path]
MakeTar = Callable[[Path, Mapping[str, bytes]], Path]
RunBuild = Callable[..., Manifest]
Encode = Callable[..., bytes]


def _images(out: Path, split: str) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Return key, labels and bytes of all images of a split, by its index."""
    manifest = load_manifest(out)
    index, found = SplitIndex(out, manifest, split), []
    for sample_id in range(len(index)):
        entry = index.entry(sample_id)
        with index.tar(index.locate(sample_id)[0]).open("rb") as file:
            file.seek(int(entry["offset"]))
            data = file.read(int(entry["size"]))
        found.append((index.key(sample_id), index.labels(sample_id), data))
    return found


def test_cifar_keeps_every_pixel(tmp_path: Path, run_build: RunBuild) -> None:
    source = write(tmp_path / "raw", {"cifar-10-python.tar.gz": cifar10_python()})
    manifest = run_build(source, layout="cifar10", allow_empty=True)
    assert manifest.labels.classes == CLASSES
    assert manifest.holdouts == {"eval": Holdout(rule="official")}
    expected = {
        (row.reshape(3, 32, 32).transpose(1, 2, 0).tobytes(), label)
        for name, rows in BATCHES.items()
        for row, label in zip(rows, LABELS[name], strict=True)
        if name != "test_batch"
    }
    found = _images(tmp_path / "out", "train")
    pixels = [np.asarray(Image.open(io.BytesIO(data))).tobytes() for _, _, data in found]
    assert {(p, its[0]) for p, (_, its, _) in zip(pixels, found, strict=True)} == expected
    assert manifest.bytes_before == (15 + 3) * 3072
    assert verify(tmp_path / "out", 1, decode=True) == (18, [])


def test_imagenet_1k_from_its_own_archives(
    tmp_path: Path, make_tar: MakeTar, encode: Encode, run_build: RunBuild
) -> None:
    raw, inner = tmp_path / "raw", {}
    raw.mkdir()
    synsets = ("n01440764", "n01443537", "n01484850")
    for number, synset in enumerate(synsets):
        images = {f"{synset}_{k}.JPEG": encode(10 * number + k) for k in range(3)}
        inner[f"{synset}.tar"] = make_tar(tmp_path / "class.tar", images).read_bytes()
    make_tar(raw / "ILSVRC2012_img_train.tar", inner)
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3)]
    held = {name: encode(90 + n, mode="CMYK" if n else "RGB") for n, name in enumerate(names)}
    make_tar(raw / "ILSVRC2012_img_val.tar", held)
    (raw / "imagenet_2012_validation_synset_labels.txt").write_text(
        "".join(f"{synset}\n" for synset in reversed(synsets))
    )
    manifest = run_build(raw, layout="imagenet1k", seed=3)
    assert manifest.labels.classes == synsets
    assert manifest.repaired.count == 2 and manifest.rejected.count == 0
    assert manifest.holdouts == {"eval": Holdout(rule="official")}
    labels = {key[-8:]: its for key, its, _ in _images(tmp_path / "out", "eval")}
    assert labels == {"00000001": (2,), "00000002": (1,), "00000003": (0,)}
    modes = [Image.open(io.BytesIO(data)).mode for _, _, data in _images(tmp_path / "out", "eval")]
    assert modes == ["RGB"] * 3
    assert verify(tmp_path / "out", 1, decode=True) == (12, [])


def test_imagenet_21k_p_takes_large_classes_and_the_first_fifty(
    tmp_path: Path, encode: Encode, run_build: RunBuild
) -> None:
    """The rule of its authors: more than 500 images, of which the first 50 are for eval."""
    release = tmp_path / "winter21_whole.tar.gz"
    with tarfile.open(release, "w:gz", compresslevel=1) as tar:
        for synset, count in (("n00000001", 501), ("n00000002", 500), ("n00000003", 502)):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for number in range(count):
                    info = tarfile.TarInfo(f"{synset}_{number}.JPEG")
                    data = encode(number % 7, width=8, height=8)
                    info.size = len(data)
                    inner.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo(f"winter21_whole/{synset}.tar")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    manifest = run_build(release, layout="imagenet21k_p")
    assert manifest.labels.classes == ("n00000001", "n00000003")
    assert manifest.split("eval").class_counts == (50, 50)
    assert manifest.split("train").class_counts == (451, 452)
    assert manifest.holdouts == {"eval": Holdout(rule="first", value=50)}


@pytest.mark.parametrize("kind", ["lossless", "resize"])
def test_transcoded_sets_say_so_and_verify(
    kind: str, tmp_path: Path, encode: Encode, run_build: RunBuild
) -> None:
    if kind == "lossless":
        pytest.importorskip("data_prep._native")
    tree = tmp_path / "raw" / "cat"
    tree.mkdir(parents=True)
    for number in range(5):
        (tree / f"{number}.jpg").write_bytes(encode(number, width=96, height=64))
    options = {"kind": kind, **({"short_px": 32} if kind == "resize" else {})}
    manifest = run_build(tmp_path / "raw", transcode=options)
    assert manifest.transcode["kind"] == kind
    images = [Image.open(io.BytesIO(d)) for _, _, d in _images(tmp_path / "out", "train")]
    assert {image.size for image in images} == {(48, 32) if kind == "resize" else (96, 64)}
    assert manifest.bytes_after == sum(len(d) for _, _, d in _images(tmp_path / "out", "train"))
    assert manifest.bytes_before == sum(path.stat().st_size for path in tree.iterdir())
    assert manifest.repaired.count == 0
    assert verify(tmp_path / "out", 1, decode=True) == (5, [])
