"""Tars made by others: what is accepted, what is refused, and labels in every form."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from data_prep.index_tars import index_tars
from data_prep.verify import verify
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Manifest
from pipeline.spec import Misuse

Encode = Callable[..., bytes]
MakeTar = Callable[[Path, Mapping[str, bytes]], Path]


def _index(folder: Path, **options: object) -> Manifest:
    values = {"globs": {}, "classes": (), "name": "theirs", "workers": 1, **options}
    return index_tars(folder, **values)  # type: ignore[arg-type]


def _labels(folder: Path, manifest: Manifest, split: str = "train") -> list[tuple[int, ...]]:
    index = SplitIndex(folder, manifest, split)
    return [index.labels(i) for i in range(len(index))]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "JPEG"])
def test_images_of_all_suffixes_with_cls(
    tmp_path: Path, encode: Encode, make_tar: MakeTar, suffix: str
) -> None:
    kind = "JPEG" if suffix.lower().startswith("j") else suffix
    image = encode(kind=kind, width=20)
    tar = make_tar(
        tmp_path / "a-0.tar", {f"k0.{suffix}": image, "k0.cls": b"2\n", "k0.txt": b"a caption"}
    )
    before = tar.read_bytes()
    manifest = _index(tmp_path)
    assert manifest.labels.classes == ("0", "1", "2")
    assert _labels(tmp_path, manifest) == [(2,)]
    entry = SplitIndex(tmp_path, manifest, "train").entry(0)
    assert (entry["width"], entry["height"]) == (20, 12)
    start = int(entry["offset"])
    assert before[start : start + len(image)] == image
    assert tar.read_bytes() == before
    assert verify(tmp_path, 1, decode=True) == (1, [])


def test_labels_from_json_and_names(tmp_path: Path, encode: Encode, make_tar: MakeTar) -> None:
    files: dict[str, bytes] = {}
    fields = [{"label": 1}, {"labels": [0, 2]}, {"labels": ["fox", "cat"]}, {"cls": "dog"}]
    for number, values in enumerate(fields):
        files[f"k{number}.jpg"] = encode(number)
        files[f"k{number}.json"] = json.dumps({"width": 16, **values}).encode()
    files |= {"k4.jpg": encode(4), "k4.cls": b"fox"}
    make_tar(tmp_path / "a.tar", files)
    manifest = _index(tmp_path, classes=("cat", "dog", "fox"))
    assert _labels(tmp_path, manifest) == [(1,), (0, 2), (2, 0), (1,), (2,)]
    assert manifest.split("train").class_counts == (2, 2, 3)
    assert verify(tmp_path, 1) == (5, [])


def test_class_names_alone_make_a_sorted_label_space(
    tmp_path: Path, encode: Encode, make_tar: MakeTar
) -> None:
    make_tar(
        tmp_path / "a.tar",
        {"0.jpg": encode(), "0.cls": b"n02", "1.jpg": encode(), "1.cls": b"n01"},
    )
    manifest = _index(tmp_path)
    assert manifest.labels.classes == ("n01", "n02")
    assert _labels(tmp_path, manifest) == [(1,), (0,)]


def test_splits_by_folder_and_by_pattern(tmp_path: Path, encode: Encode, make_tar: MakeTar) -> None:
    sample = {"0.jpg": encode(), "0.cls": b"0"}
    for name in ("x-train-0000.tar", "x-train-0001.tar", "x-validation-0000.tar"):
        make_tar(tmp_path / name, sample)
    globs = {"train": "*-train-*.tar", "eval": "*-validation-*.tar"}
    manifest = _index(tmp_path, globs=globs)
    assert [len(split.shards) for split in manifest.splits.values()] == [2, 1]
    (tmp_path / "b/val").mkdir(parents=True)
    make_tar(tmp_path / "b/val/0.tar", sample)
    assert list(_index(tmp_path / "b").splits) == ["val"]
    with pytest.raises(Misuse, match="is there already; remove it to index"):
        _index(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(Misuse, match=r"no tar below .* matches train=\*-trein-\*"):
        _index(tmp_path, globs={"train": "*-trein-*.tar"})
    with pytest.raises(Misuse, match="matches the patterns of train and eval"):
        _index(tmp_path, globs={"train": "*.tar", "eval": "*-val*.tar"})


JPEG = object()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", JPEG), ("b.jpg", JPEG), ("a.cls", b"0")], r"key 'a' comes again after"),
        ([("a.jpg", JPEG), ("a.jpg", JPEG)], r"key 'a' has two members \.jpg"),
        ([("a.jpg", JPEG), ("a.png", JPEG), ("a.cls", b"0")], r"needs exactly one of \.jpg, "),
        ([("a.cls", b"0")], r"key 'a' has members \.cls; it needs exactly one of"),
        ([("a.jpg", JPEG)], r"key 'a' has no label; it needs a\.cls, or a\.json"),
        ([("a.jpg", JPEG), ("a.json", b"{]")], r"a\.json is not JSON"),
        ([("a.jpg", JPEG), ("a.json", b'{"label": null}')], r"key 'a' has no label"),
        ([("a.jpg", JPEG), ("a.cls", b"-3")], r"label space|'-3'|labels"),
        ([("a.jpg", b"text"), ("a.cls", b"0")], r"key 'a': its image cannot be used"),
        ([("a.jpg", JPEG), ("a.pyd", b"x"), ("a.cls", b"0")], r"would be run as code"),
        ([("../a.jpg", JPEG), ("../a.cls", b"0")], r"'\.\./a\.jpg' is refused: unsafe name"),
        ([], r"holds no sample; remove it|truncated or damaged"),
    ],
)
def test_broken_samples_are_refused_by_tar_and_key(
    tmp_path: Path, encode: Encode, members: list[tuple[str, object]], message: str
) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name, data in members:
            content = encode() if data is JPEG else data
            assert isinstance(content, bytes)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    if "-3" in message:
        assert _index(tmp_path).labels.classes == ("-3",)  # no index, so it is a name
        return
    with pytest.raises(Misuse, match=message) as error:
        _index(tmp_path)
    assert "bad.tar" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar"]


def test_labels_outside_of_the_class_list_are_named(
    tmp_path: Path, encode: Encode, make_tar: MakeTar
) -> None:
    make_tar(tmp_path / "a.tar", {"0.jpg": encode(), "0.cls": b"7"})
    with pytest.raises(Misuse, match=r"a\.tar: label \(7,\) is not among the 2 classes"):
        _index(tmp_path, classes=("cat", "dog"))
    make_tar(
        tmp_path / "b.tar",
        {"0.jpg": encode(), "0.cls": b"cat"},
    )
    with pytest.raises(Misuse, match=r"names \('cat'\) and numbers \(7\) at once"):
        _index(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no tar in it"):
        _index(tmp_path)
    with pytest.raises(Misuse, match="no such folder"):
        _index(tmp_path / "none")
