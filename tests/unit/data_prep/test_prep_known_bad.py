"""The files of ImageNet that are known to be odd, by name: twins of each, inside its archives."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Manifest, load_manifest
from tests.unit.data_prep.conftest import MakeImage, draw
from tests.unit.data_prep.imagenet_archives import TRAIN_TAR, tar

PNG = "n02105855_2933"
BAD_EXIF = "n04152593_17460"
CMYK = [
    "n01739381_1309",
    "n02077923_14822",
    "n02447366_23489",
    "n02492035_15739",
    "n02747177_10752",
    "n03018349_4028",
    "n03062245_4620",
    "n03347037_9675",
    "n03467068_12171",
    "n03529860_11437",
    "n03544143_17228",
    "n03633091_5218",
    "n03710637_5125",
    "n03961711_5286",
    "n04033995_2932",
    "n04258138_17003",
    "n04264628_27969",
    "n04336792_7448",
    "n04371774_5854",
    "n04596742_4225",
    "n07583066_647",
    "n13037406_4650",
]
"""Twenty-two of ILSVRC 2012 (the list that TensorFlow's scripts and its data sets share)."""
GZIPPED = "n02487347_1956"
UNREADABLE = [
    "n01678043_6448",
    "n01896844_997",
    "n02368116_318",
    "n02428089_710",
    "n02597972_5463",
    "n03957420_30695",
    "n03957420_33553",
    "n03957420_8296",
    "n04135315_8814",
    "n04135315_9318",
    "n04257684_9033",
    "n04427559_2974",
    "n06470073_47249",
    "n07930062_4147",
    "n09224725_3995",
    "n09359803_8155",
    "n09894445_7463",
    "n12353203_3849",
    "n12630763_8018",
    "n09620794_5529",
    "n09789566_3522",
    "n10175248_583",
    "n10316360_4246",
]
"""Of ImageNet-21k, winter21 and fall11."""


def damages(encode: MakeImage) -> list[bytes]:
    """Return kinds of unreadable files; what is wrong with the real ones is published nowhere."""
    good = encode(1)
    return [b"", good[: len(good) // 2], b"<html>404</html>", good[:20], bytes(500), good[:-2]]


def pack(images: dict[str, bytes]) -> bytes:
    """Return a tar of class tars; every class has a good image besides."""
    classes: dict[str, dict[str, bytes]] = {}
    for name, data in images.items():
        classes.setdefault(name.split("_")[0], {})[f"{name}.JPEG"] = data
    return tar({f"{synset}.tar": tar(files) for synset, files in sorted(classes.items())})


def with_good(names: dict[str, bytes], encode: MakeImage) -> dict[str, bytes]:
    synsets = sorted({name.split("_")[0] for name in names})
    return {**names, **{f"{synset}_1": encode(n) for n, synset in enumerate(synsets)}}


def listed(out: Path) -> dict[str, tuple[str, str]]:
    """Return {name: (what became of it, why)} of rejects.jsonl."""
    lines = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    return {Path(line["file"]).stem: (line["what"], line["kind"]) for line in lines}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_the_odd_files_of_imagenet_1k_are_repaired_and_listed_by_name(
    tmp_path: Path, encode: MakeImage, run_build: Callable[..., Manifest]
) -> None:
    buffer = io.BytesIO()
    draw(5).save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    odd = {
        PNG: encode(3, "PNG", mode="RGBA"),
        BAD_EXIF: buffer.getvalue(),
        **{name: encode(n + 50, mode="CMYK") for n, name in enumerate(CMYK)},
    }
    (tmp_path / TRAIN_TAR).write_bytes(pack(with_good(odd, encode)))
    manifest = run_build(tmp_path / TRAIN_TAR, layout="imagenet1k")
    found = listed(tmp_path / "out")
    assert found.pop(PNG)[0] == "repaired"
    assert [found.pop(name) for name in CMYK] == [("repaired", "JPEG CMYK")] * 22
    assert not found, "a damaged EXIF block harms no pixel: stored as it is, byte for byte"
    train = SplitIndex(tmp_path / "out", load_manifest(tmp_path / "out"), "train")
    assert len(train) == manifest.split("train").num_samples == len(with_good(odd, encode))
    for number in range(len(train)):
        entry, shard = train.entry(number), train.locate(number)[0]
        stored = train.tar(shard).read_bytes()[entry["offset"] :][: entry["size"]]
        assert Image.open(io.BytesIO(stored)).mode == "RGB"


@pytest.mark.parametrize("release", ["fall11_whole.tar", "winter21_whole.tar.gz"])
def test_the_unreadable_files_of_imagenet_21k_are_rejected_and_listed_by_name(
    release: str, tmp_path: Path, encode: MakeImage, run_build: Callable[..., Manifest]
) -> None:
    kinds = damages(encode)
    odd = {name: kinds[n % len(kinds)] for n, name in enumerate(UNREADABLE)}
    odd[GZIPPED] = gzip.compress(encode(77), mtime=0)
    images = with_good(odd, encode)
    content = pack(images)
    (tmp_path / release).write_bytes(gzip.compress(content) if release[-1] == "z" else content)
    manifest = run_build(tmp_path / release, layout="imagenet21k")
    found = listed(tmp_path / "out")
    assert found.pop(GZIPPED)[0] == "repaired"
    assert {name: what for name, (what, _) in found.items()} == dict.fromkeys(
        UNREADABLE, "rejected"
    )
    assert manifest.rejected.count == len(UNREADABLE) == 23
    assert manifest.split("train").num_samples == len(images) - len(UNREADABLE)
