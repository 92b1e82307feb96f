"""The manifest: read back as written, refused when it was touched, no paths out of its folder."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.labels import LabelSpace
from pipeline.data.manifest import (
    MAX_NOTES,
    Holdout,
    Manifest,
    Notes,
    Shard,
    Split,
    load_manifest,
    save_manifest,
)
from pipeline.spec import Failure, Misuse


def _shard(file: str = "train/shard-000000.tar", num_samples: int = 3) -> Shard:
    return Shard(
        file=file,
        num_samples=num_samples,
        num_bytes=10_240,
        sha256="a",
        index_sha256="b",
        labels_sha256="c",
    )


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        name="pets",
        tool="test",
        holdouts={"eval": Holdout(rule="fraction", value=0.2, seed=3)},
        transcode={"kind": "resize", "short_px": 256, "restarts": True},
        labels=LabelSpace(name="pets", classes=("cat", "dog")),
        splits={"train": Split(shards=(_shard(), _shard("train/b.tar", 4)), class_counts=(5, 2))},
    )


def test_it_reads_back_as_written(tmp_path: Path, manifest: Manifest) -> None:
    save_manifest(tmp_path, manifest)
    again = load_manifest(tmp_path)
    assert again == manifest
    assert again.digest() == manifest.digest()
    assert again.num_classes == 2
    assert again.split("train").num_samples == 7
    assert again.split("train").num_bytes == 20_480


def test_shards_name_the_files_beside_them() -> None:
    assert _shard().index_file == "train/shard-000000.idx.npy"
    assert _shard().labels_file == "train/shard-000000.lab.npy"


def test_a_split_that_is_not_there_is_named_with_those_that_are(manifest: Manifest) -> None:
    with pytest.raises(Misuse, match=r"'pets' has no split 'eval'; it has: train"):
        manifest.split("eval")


@pytest.mark.parametrize("file", ["../x.tar", "/etc/x.tar", "a/../../x.tar", "x.zip", "a//x.tar"])
def test_a_shard_outside_of_the_folder_is_refused(file: str) -> None:
    with pytest.raises(ValueError, match="relative path of plain names"):
        _shard(file)


def test_counts_must_fit_the_label_space(manifest: Manifest) -> None:
    values = {**manifest.model_dump(), "splits": {"train": {"shards": [], "class_counts": [1]}}}
    with pytest.raises(Misuse, match="counts 1 classes, the label space has 2"):
        Manifest.parse(values, "manifest.json")


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "was changed after it was written"),
        ({"digest": "0"}, "was changed after it was written"),
        ({"format": 1}, "field 'format' is 1; this version reads format 2"),
        ({"colour": 1}, "field 'colour' is unknown"),
    ],
)
def test_a_touched_manifest_is_refused(
    tmp_path: Path, manifest: Manifest, changes: dict[str, Any], message: str
) -> None:
    save_manifest(tmp_path, manifest)
    _edit(tmp_path, **changes)
    with pytest.raises(Misuse, match=message):
        load_manifest(tmp_path)


def test_every_flipped_bit_is_found(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "manifest.json"
    notes = Notes.of([("caf\u00e9.jpg", "truncated", "half of it is missing")])
    save_manifest(tmp_path, manifest.model_copy(update={"rejected": notes}))
    whole = path.read_bytes()
    rng = random.Random(0)
    for bit in rng.sample(range(8 * len(whole)), 600):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(Misuse, match="manifest.json"):
            load_manifest(tmp_path)
    path.write_bytes(whole.replace(b"caf\\u00e9", b"caf\\u00E9"))  # the same to a JSON parser
    with pytest.raises(Misuse, match="in other bytes"):
        load_manifest(tmp_path)


def test_missing_folder_manifest_and_broken_json_tell_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"no such folder of shards; make it with `python -m data_pre"):
        load_manifest(tmp_path / "none")
    with pytest.raises(Misuse, match=r"no finished set of shards; finish it with"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(Misuse, match="cannot be read"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(Misuse, match="expected a JSON object, found list"):
        load_manifest(tmp_path)


def test_a_disk_that_returns_errors_is_no_misuse(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.symlink_to("/proc/self/mem")  # reading its first bytes is an I/O error
    told = r"manifest\.json: cannot be read \(Input/output error\); the disk or the file server"
    with pytest.raises(Failure, match=told):
        load_manifest(tmp_path)


def test_a_manifest_that_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(Misuse, match=r"manifest\.json: cannot be read .*; see that it is a f"):
        load_manifest(tmp_path)
    with pytest.raises(Misuse, match=r"plain: no such folder of shards"):
        (tmp_path / "plain").write_text("")
        load_manifest(tmp_path / "plain")


def test_notes_count_all_and_list_the_first() -> None:
    notes = Notes.of((f"{n}.jpg", "truncated" if n % 2 else "empty", "why") for n in range(3000))
    assert notes.count == 3000
    assert notes.by_reason == {"empty": 1500, "truncated": 1500}
    assert len(notes.first) == MAX_NOTES
    assert notes.first[0].file == "0.jpg"
