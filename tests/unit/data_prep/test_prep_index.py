"""Tars made by others: what is accepted, what is refused, and labels in every form."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_prep.index_tars import index_tars
from data_prep.verify import verify
from pipeline.data.index import SplitIndex
from pipeline.data.labels import published
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.spec import Misuse
from tests.unit.data_prep.shard_sets import encode, read_tar, vouch, write_tar

Members = list[tuple[str, bytes]]


def _index(folder: Path, **options: object) -> Manifest:
    values = {"globs": {}, "classes": (), "name": "theirs", "workers": 1, **options}
    return index_tars(folder, **values)  # type: ignore[arg-type]


def _labels(folder: Path, manifest: Manifest, split: str = "train") -> list[tuple[int, ...]]:
    index = SplitIndex(folder, manifest, split)
    return [index.labels(i) for i in range(len(index))]


def _sample(key: str, label: int | str = 0, seed: int = 0) -> Members:
    return [(f"{key}.jpg", encode(seed)), (f"{key}.cls", str(label).encode())]


def _samples(count: int, start: int = 0) -> Members:
    return [member for n in range(start, start + count) for member in _sample(f"{n:04d}", n % 3, n)]


def _json(values: object) -> bytes:
    return json.dumps(values).encode()


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "JPEG"])
def test_images_of_all_suffixes_with_cls(tmp_path: Path, suffix: str) -> None:
    image = encode(kind="JPEG" if suffix.lower().startswith("j") else suffix, width=20)
    members = [(f"k0.{suffix}", image), ("k0.cls", b"2\n"), ("k0.txt", b"a caption")]
    tar = write_tar(tmp_path / "a-0.tar", members)
    before = tar.read_bytes()
    manifest = _index(tmp_path)
    assert manifest.labels.classes == ("0", "1", "2")
    assert _labels(tmp_path, manifest) == [(2,)]
    entry = SplitIndex(tmp_path, manifest, "train").entry(0)
    assert (entry["width"], entry["height"]) == (20, 12)
    start = int(entry["offset"])
    assert before[start : start + len(image)] == image
    assert tar.read_bytes() == before
    assert manifest.bytes_after == len(image)
    assert verify(tmp_path, 1, decode=True) == (1, [])


def test_labels_from_json_and_names(tmp_path: Path) -> None:
    members: Members = []
    fields = [{"label": 1}, {"labels": [0, 2, 2]}, {"labels": ["fox", "cat"]}, {"cls": "dog"}]
    for number, values in enumerate(fields):
        members += [
            (f"k{number}.jpg", encode(number)), (f"k{number}.json", _json({"width": 1, **values}))
        ]  # fmt: skip
    members += [*_sample("k4", "fox"), ("k4.json", _json({"label": "a red animal"}))]
    write_tar(tmp_path / "a.tar", members)
    manifest = _index(tmp_path, classes=("cat", "dog", "fox"))
    assert _labels(tmp_path, manifest) == [(1,), (0, 2), (2, 0), (1,), (2,)]
    assert manifest.split("train").class_counts == (2, 2, 3)
    assert verify(tmp_path, 1) == (5, [])


def test_class_names_alone_make_a_sorted_label_space(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*_sample("0", "n02"), *_sample("1", "n01")])
    manifest = _index(tmp_path)
    assert manifest.labels.classes == ("n01", "n02")
    assert _labels(tmp_path, manifest) == [(1,), (0,)]
    assert verify(tmp_path, 1) == (2, [])


def test_a_published_label_space_keeps_its_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*_sample("0", 0), *_sample("1", "n15075141")])
    manifest = _index(tmp_path, classes=published("imagenet_1k").classes)
    assert manifest.labels.name == "imagenet_1k"
    assert _labels(tmp_path, manifest) == [(0,), (999,)]
    assert verify(tmp_path, 1) == (2, [])


def test_splits_by_folder_and_by_pattern(tmp_path: Path) -> None:
    for name in ("x-train-0000.tar", "x-train-0001.tar", "x-validation-0000.tar"):
        write_tar(tmp_path / name, _sample(name[:-4]))
    globs = {"train": "*-train-*.tar", "eval": "*-validation-*.tar"}
    manifest = _index(tmp_path, globs=globs)
    assert [len(split.shards) for split in manifest.splits.values()] == [2, 1]
    assert manifest.holdouts["eval"].rule == "unknown"
    write_tar(tmp_path / "b/val/0.tar", _sample("0"))
    assert list(_index(tmp_path / "b").splits) == ["val"]
    with pytest.raises(Misuse, match="is there already; remove it to index"):
        _index(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(Misuse, match=r"no tar below .* matches train=\*-trein-\*"):
        _index(tmp_path, globs={"train": "*-trein-*.tar"})
    with pytest.raises(Misuse, match="matches the patterns of train and eval"):
        _index(tmp_path, globs={"train": "*.tar", "eval": "*-val*.tar"})


def _timm(folder: Path, suffix: str = "jpg") -> dict[str, object]:
    """Write shards and shard list as timm's imagenet-1k-wds has them."""
    kind, splits = "JPEG" if suffix == "jpg" else suffix, {}
    for split, counts in {"train": (4, 3), "validation": (2,)}.items():
        files = [f"imagenet1k-{split}-{number:04d}.tar" for number in range(len(counts))]
        for file, count in zip(files, counts, strict=True):
            members: Members = []
            for n in range(count):
                key = f"n0144076{n}_{len(file)}{n}"
                its = {"filename": f"{key}.JPEG", "height": 12, "label": n, "width": 16}
                members += [(f"{key}.cls", str(n).encode()), (f"{key}.{suffix}", encode(n, kind))]
                members += [(f"{key}.json", _json(its))]
            write_tar(folder / file, members)
        splits[split] = {
            "name": split,
            "filenames": files,
            "shard_lengths": counts,
            "num_samples": sum(counts),
        }
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    (folder / "README.md").write_text("theirs")
    return {"splits": splits}


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_shards_of_timm_get_their_splits_from_the_shard_list(tmp_path: Path, suffix: str) -> None:
    _timm(tmp_path, suffix)
    manifest = _index(tmp_path, classes=("n01", "n02", "n03", "n04"))
    counts = {name: split.num_samples for name, split in manifest.splits.items()}
    assert counts == {"train": 7, "eval": 2}
    assert _labels(tmp_path, manifest, "eval") == [(0,), (1,)]
    assert not manifest.interleaved
    assert verify(tmp_path, 1, decode=True) == (9, [])


def test_a_shard_list_is_compared_with_what_is_there(tmp_path: Path) -> None:
    info = _timm(tmp_path)
    tar = tmp_path / "imagenet1k-train-0001.tar"
    write_tar(tar, read_tar(tar)[:-3])  # cut between two samples: a good tar by itself
    with pytest.raises(Misuse, match=r"train-0001\.tar: holds 2 samples, _info\.json says 3"):
        _index(tmp_path)
    tar.unlink()
    with pytest.raises(Misuse, match=r"3 tars, 1 of them are missing, the first is imagenet1k-tra"):
        _index(tmp_path)
    for broken in ("{}", "[]", "{", json.dumps({"splits": {"a": 1}}), json.dumps({"splits": 2})):
        (tmp_path / "_info.json").write_text(broken)
        with pytest.raises(Misuse, match="not the shard list of timm's reader"):
            _index(tmp_path)
    splits: Any = info["splits"]
    splits["train"]["filenames"] = ["imagenet1k-validation-0000.tar"] * 2
    (tmp_path / "_info.json").write_text(json.dumps(info))
    with pytest.raises(Misuse, match="in two splits"):
        _index(tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def _img2dataset(folder: Path, failures: int) -> None:
    """Write what img2dataset writes; downloads that failed have no image."""
    members: Members = []
    for n in range(200):
        key = f"0000{n:05d}"
        values = {"caption": "a photo", "animal": f"kind{n % 4}", "key": key, "status": "success"}
        if n < failures:
            values |= {"status": "failed_to_download", "error_message": "HTTP Error 404"}
        else:
            members.append((f"{key}.jpg", encode(n)))
        members += [(f"{key}.txt", b"a photo"), (f"{key}.json", _json(values))]
    write_tar(folder / "00000.tar", members)
    (folder / "00000.parquet").write_bytes(b"PAR1")
    (folder / "00000_stats.json").write_text("{}")


def test_img2dataset_with_a_label_field_and_failed_downloads(tmp_path: Path) -> None:
    _img2dataset(tmp_path, failures=2)
    manifest = _index(tmp_path, label_field="animal")
    assert manifest.labels.classes == ("kind0", "kind1", "kind2", "kind3")
    assert manifest.split("train").num_samples == 198
    assert manifest.rejected.by_reason == {"no image": 2}
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").open()]
    assert lines[0]["file"] == "00000.tar/000000000"
    assert "(failed_to_download: HTTP Error 404)" in lines[0]["reason"]
    assert (lines[0]["what"], lines[0]["kind"]) == ("rejected", "no image")
    assert verify(tmp_path, 1, decode=True) == (198, [])


def test_many_unusable_samples_are_not_left_out_in_silence(tmp_path: Path) -> None:
    _img2dataset(tmp_path, failures=3)
    with pytest.raises(
        Misuse, match=r"3 of 200 samples cannot be used, over 1% \(3 no image\); 00000\.tar/"
    ):
        _index(tmp_path, label_field="animal")
    with pytest.raises(Misuse, match=r"'colour'; the fields of its json are: animal, caption, key"):
        _index(tmp_path, label_field="colour")
    with pytest.raises(Misuse, match="correct --label-field"):
        _index(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".parquet", ".tar"]


def test_what_verify_may_skip_are_only_the_rejected_samples(tmp_path: Path) -> None:
    members = _samples(150)
    members[0] = ("0000.jpg", b"no image at all")
    write_tar(tmp_path / "a.tar", members)
    manifest = _index(tmp_path)
    assert manifest.rejected.first[0].reason == "no JPEG, PNG or WebP: starts with 6e 6f 20 69"
    assert verify(tmp_path, 1) == (149, [])
    cases: dict[str, Members] = {
        "key 'zy': has members .txt": [("zy.txt", b"")],
        "key 'zz': is not in the index": _sample("zz"),
    }
    for message, more in cases.items():
        write_tar(tmp_path / "a.tar", [*members, *more])
        vouch(tmp_path, manifest)
        assert any(message in problem for problem in verify(tmp_path, 1)[1])


def test_the_same_tar_twice_is_refused_but_keys_may_begin_anew_in_every_tar(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "a.tar", _samples(3))
    write_tar(tmp_path / "b.tar", _samples(2))
    write_tar(tmp_path / "c.tar", _samples(3))
    with pytest.raises(Misuse, match=r"c\.tar: the same bytes as .*a\.tar; move one of them"):
        _index(tmp_path)
    (tmp_path / "c.tar").unlink()
    _index(tmp_path)
    assert verify(tmp_path, 1) == (5, [])


def test_members_that_lie_apart_are_put_together(tmp_path: Path) -> None:
    members = _samples(6)
    images, labels = members[::2], members[1::2]
    write_tar(tmp_path / "a.tar", images + labels[::-1])
    write_tar(tmp_path / "b.tar", _samples(2, start=6))
    manifest = _index(tmp_path)
    assert manifest.interleaved
    assert _labels(tmp_path, manifest) == [(n % 3,) for n in range(8)]
    assert verify(tmp_path, 1) == (8, [])
    assert load_manifest(tmp_path).interleaved


def test_what_webdataset_skips_is_no_sample(tmp_path: Path) -> None:
    extra = [("README", b"x"), ("._0000.jpg", b"x"), ("__info__", b"x"), ("d/.DS_Store", b"x")]
    write_tar(tmp_path / "a.tar", [*extra, *_samples(3)])
    manifest = _index(tmp_path)
    assert manifest.split("train").num_samples == 3
    assert manifest.rejected.count == 0
    assert verify(tmp_path, 1) == (3, [])


def test_several_workers_give_the_same_manifest(tmp_path: Path) -> None:
    for folder in ("one", "three"):
        for number in range(5):
            write_tar(tmp_path / folder / f"{number}.tar", _samples(4, start=4 * number))
    one = _index(tmp_path / "one")
    assert _index(tmp_path / "three", workers=3).digest() == one.digest()


def test_a_cut_tar_is_named_by_a_worker_too(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", _samples(3))
    tar = write_tar(tmp_path / "b.tar", _samples(9))
    tar.write_bytes(tar.read_bytes()[:9000])
    for workers in (1, 2):
        with pytest.raises(Misuse, match=r"b\.tar: truncated or damaged tar at byte"):
            _index(tmp_path, workers=workers)
    assert not list(tmp_path.glob("*.npy"))


JPEG = object()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", JPEG), ("a.jpg", JPEG)], r"key 'a' has two members \.jpg"),
        ([("a.jpg", JPEG), ("a.png", JPEG), ("a.cls", b"0")], r"needs exactly one of \.jpg, "),
        ([("a.cls", b"0")], r"a\.cls|has members \.cls; it needs exactly one of"),
        ([("a.jpg", JPEG)], r"has no label; it needs a\.cls, or a\.json"),
        ([("a.jpg", JPEG), ("a.json", b"{]")], r"its json is no JSON"),
        ([("a.jpg", JPEG), ("a.json", b"[" * 100_000)], r"its json is no JSON"),
        ([("a.jpg", JPEG), ("a.json", b'{"label": null}')], r"has no label.* json are: label"),
        ([("a.jpg", JPEG), ("a.json", b'{"label": 1e5}')], r"has no label"),
        ([("a.jpg", JPEG), ("a.json", b'{"label": ' + b"9" * 9000 + b"}")], r"no JSON|no label"),
        ([("a.jpg", JPEG), ("a.cls", b"-3")], r"label '-3' is not among the"),
        ([("a.jpg", JPEG), ("a.cls", b"900000000")], r"900,000,001 classes, over 100,000"),
        ([("a.jpg", JPEG), ("a.cls", b"\x80\x04\x95")], r"is no text: starts with 80 04 95"),
        ([("a.jpg", JPEG), ("a.cls", b"x" * 5000)], r"has no label"),
        ([("a.jpg", JPEG), ("a.cls", b"0" * (2 << 20))], r"bytes, over 1048576"),
        ([("a.jpg", JPEG), ("a.json", _json({"labels": list(range(2000))}))], r"2000 labels, over"),
        ([("a.jpg", b"text"), ("a.cls", b"0")], r"no JPEG, PNG or WebP"),
        ([("a.jpg", JPEG), ("a.pyd", b"x"), ("a.cls", b"0")], r"would be run as code"),
        ([("../a.jpg", JPEG), ("../a.cls", b"0")], r"'\.\./a\.jpg' is refused: unsafe name"),
        ([], r"holds no usable sample; move it|truncated or damaged"),
    ],
)
def test_broken_samples_are_refused_by_tar_and_key(
    tmp_path: Path, members: list[tuple[str, object]], message: str
) -> None:
    whole = [(name, encode() if data is JPEG else data) for name, data in members]
    write_tar(tmp_path / "bad.tar", whole)  # type: ignore[arg-type]
    with pytest.raises(Misuse, match=message) as error:
        _index(tmp_path)
    assert "bad.tar" in str(error.value) or "classes, over" in message
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar"]


def test_links_and_names_that_no_manifest_holds_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "one two.tar", _sample("0"))
    with pytest.raises(Misuse, match="plain names"):
        _index(tmp_path)
    (tmp_path / "one two.tar").unlink()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(Misuse, match=r"a\.tar: member 'a\.jpg' is refused: link"):
        _index(tmp_path)


def test_labels_outside_of_the_class_list_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", _sample("0", 7))
    with pytest.raises(Misuse, match=r"a\.tar: label '7' is not among the 2 classes"):
        _index(tmp_path, classes=("cat", "dog"))
    write_tar(tmp_path / "b.tar", _sample("1", "cat"))
    with pytest.raises(Misuse, match=r"names \('cat'\) and numbers \(7\) at once"):
        _index(tmp_path)
    with pytest.raises(Misuse, match="label 'cat' is not among the 8 classes"):
        _index(tmp_path, classes=tuple("abcdefgh"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no tar in it"):
        _index(tmp_path)
    with pytest.raises(Misuse, match="no such folder"):
        _index(tmp_path / "none")
