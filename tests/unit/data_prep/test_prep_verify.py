"""Verification: every flipped bit is found, and the file, the shard and the sample are named."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.verify import verify
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import load_manifest, save_manifest
from pipeline.spec import Misuse, canonical_json
from tests.unit.data_prep.shard_sets import (
    TAR,
    One,
    encode,
    read_tar,
    small_set,
    vouch,
    write_set,
    write_tar,
)

Members = list[tuple[str, bytes]]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    small_set(tmp_path / "out")
    return tmp_path / "out"


def _problems(folder: Path) -> list[str]:
    return verify(folder, 1)[1]


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def test_a_whole_set_passes(shards: Path) -> None:
    assert verify(shards, 1) == (7, [])
    assert verify(shards, 1, decode=True) == (7, [])


def test_several_workers_find_the_same(shards: Path) -> None:
    for file in (TAR, "train/shard-000001.tar", "eval/shard-000000.lab.npy"):
        _flip(shards / file, 8 * 100)
    problems = _problems(shards)
    assert len(problems) > 3
    assert verify(shards, 3) == (7, problems)


def test_hundreds_of_flipped_bits_anywhere_in_any_file_are_found_and_the_file_named(
    shards: Path,
) -> None:
    rng = np.random.default_rng(0)
    files = sorted(path for path in shards.rglob("*") if path.is_file())
    assert len(files) == 13
    for path in files:
        for bit in rng.integers(0, 8 * path.stat().st_size, 40).tolist():
            _flip(path, bit)
            problems = _problems(shards)
            assert any(str(path) in problem for problem in problems), f"bit {bit} of {path}"
            _flip(path, bit)
    assert _problems(shards) == []


def test_every_byte_of_small_files_counts(shards: Path) -> None:
    """No other file has their digests, and a flip may leave valid JSON that says the same."""
    for name in ("build.json", "manifest.json"):
        path = shards / name
        for byte in range(0, path.stat().st_size, 3 if name == "build.json" else 29):
            _flip(path, 8 * byte + byte % 8)
            problems = _problems(shards)
            assert problems and name in problems[0], f"byte {byte} of {name}"
            _flip(path, 8 * byte + byte % 8)


def test_the_same_json_in_other_letters_is_found(shards: Path) -> None:
    text = (shards / "build.json").read_text()
    assert "\\u00e9" in text
    (shards / "build.json").write_text(text.replace("\\u00e9", "\\u00E9"))
    assert "build.json: was changed or damaged" in _problems(shards)[0]


def test_a_set_without_build_json_is_whole(shards: Path) -> None:
    (shards / "build.json").unlink()
    (shards / "show.html").write_text("<!doctype html>")
    assert _problems(shards) == []


def test_a_flipped_bit_in_an_image_names_its_key(shards: Path) -> None:
    index = SplitIndex(shards, load_manifest(shards), "train")
    for sample_id in range(3):
        entry, key = index.entry(sample_id), index.key(sample_id)
        bit = 8 * (int(entry["offset"]) + int(entry["size"]) // 2)
        _flip(shards / TAR, bit)
        problems = _problems(shards)
        assert problems[0] == f"{shards / TAR}: key '{key}': the image is damaged (crc32c differs)"
        assert problems[1].endswith("sha256 differs from the manifest's")
        _flip(shards / TAR, bit)


def test_damage_around_the_image_names_the_member(shards: Path) -> None:
    index = SplitIndex(shards, load_manifest(shards), "train")
    header, key = int(index.entry(0)["header"]), index.key(0)
    cases = {
        512: f"key '{key}': labels",  # the content of key.cls, the first member
        512 + 100: f"member '{key}.cls': damaged padding",
        header + 2: f"after {key}.cls",
    }
    for byte, message in cases.items():
        _flip(shards / TAR, 8 * byte)
        assert message in _problems(shards)[0]
        _flip(shards / TAR, 8 * byte)


def test_cut_replaced_and_missing_files_are_named(shards: Path) -> None:
    tar = shards / TAR
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) // 2])
    assert any("truncated or damaged tar" in problem for problem in _problems(shards))
    tar.write_text("<html>")
    assert any(str(tar) in problem for problem in _problems(shards))
    tar.write_bytes(data)
    for path in sorted(shards.rglob("*")):
        if path.is_dir() or path.name in ("manifest.json", "build.json"):
            continue
        aside = path.rename(shards.parent / "aside")
        assert _problems(shards)[0].startswith(f"{path}: is missing"), path
        aside.rename(path)


def test_whatever_the_manifest_does_not_know_is_foreign(shards: Path) -> None:
    shutil.copy(shards / TAR, shards / "train/extra.tar")
    (shards / "train/.hidden").write_text("")
    (shards / "notes.txt").write_text("")
    (shards / "link").symlink_to(TAR)
    (shards / "more").symlink_to("/usr")
    problems = _problems(shards)
    names = ("link", "more", "notes.txt", "train/.hidden", "train/extra.tar")
    assert [problem.partition(":")[0] for problem in problems] == [f"{shards}/{n}" for n in names]
    assert all("is not in the manifest" in problem for problem in problems)


def test_a_build_that_did_not_end_is_named(shards: Path) -> None:
    (shards / ".build").mkdir()
    (shards / ".build/anything").write_text("")
    (problem,) = _problems(shards)
    assert problem.startswith(f"{shards}/.build: left by a build that did not end")


def _rewrite(shards: Path, change: Callable[[Members], object]) -> None:
    """Change the members of the first shard and write its digest into a valid manifest."""
    members = read_tar(shards / TAR)
    change(members)
    write_tar(shards / TAR, members)
    vouch(shards, load_manifest(shards))


def _lie(shards: Path, **fields: object) -> None:
    save_manifest(shards, load_manifest(shards).model_copy(update=fields))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.append(("zz.txt", b"x")), "key 'zz': has members .txt; it needs exactly"),
        (lambda m: m.append(("README", b"x")), "member 'README' is of no sample"),
        (lambda m: m.insert(0, ("00000000-cat-0.txt", b"1" * 600)), "lies elsewhere than its"),
        (lambda m: m.insert(0, m.pop()), "comes again after other keys (interleaved or double)"),
        (lambda m: m.append(m[0]), "key '00000000-cat-0' has two members .cls"),
        (lambda m: m.insert(1, ("zz.pyd", b"import os")), "zz.pyd' would be run as code"),
        (lambda m: m.insert(1, ("zz.pkl.gz", b"")), "zz.pkl.gz' would be run as code"),
        (lambda m: m.extend([("zz.cls", b"0"), ("zz.jpg", encode())]), "key 'zz': is not in the"),
        (lambda m: (m.pop(0), m.pop(0)), "has 2 samples, its index 3"),
        (lambda m: m.__setitem__(0, (m[0][0], b"1")), "labels (1,), but its index has (0,)"),
        (lambda m: m.__setitem__(0, (m[0][0], b"\x80\x04")), "is no text: starts with 80 04"),
    ],
)
def test_a_tar_that_does_not_fit_its_index_is_found_though_all_digests_agree(
    shards: Path, change: Callable[[Members], object], message: str
) -> None:
    _rewrite(shards, change)
    assert any(message in problem for problem in _problems(shards)), _problems(shards)


def test_an_index_that_does_not_fit_the_manifest_is_found(shards: Path) -> None:
    index = shards / "train/shard-000000.idx.npy"
    manifest = load_manifest(shards)
    entries = np.load(index)
    cases = {
        "has 2 samples, the manifest 3": entries[:2],
        "points at more labels than": np.where(True, entries, entries).copy(),
        "not index entries": np.zeros(3),
    }
    cases["points at more labels than"]["label_start"] = 7
    for message, values in cases.items():
        np.save(index, values)
        digest = hashlib.sha256(index.read_bytes()).hexdigest()
        train = manifest.split("train")
        first = train.shards[0].model_copy(update={"index_sha256": digest})
        train = train.model_copy(update={"shards": (first, *train.shards[1:])})
        _lie(shards, splits={**manifest.splits, "train": train})
        assert any(message in problem for problem in _problems(shards)), message


def test_counts_that_the_shards_do_not_hold_are_found(shards: Path) -> None:
    manifest = load_manifest(shards)
    _lie(shards, bytes_after=manifest.bytes_after + 1)
    assert "field 'bytes_after'" in _problems(shards)[0]
    train = manifest.split("train").model_copy(update={"class_counts": (4, 1)})
    save_manifest(
        shards, manifest.model_copy(update={"splits": {**manifest.splits, "train": train}})
    )
    assert "claims 1 images of class 1, its shards hold 2" in "".join(_problems(shards))


def test_a_key_in_two_shards_is_found(tmp_path: Path) -> None:
    one = One("0-cat", (0,), encode(1))
    write_set(tmp_path, {"train": [[one], [one]], "eval": [[one]]})
    (problem,) = _problems(tmp_path)
    tars = f"{tmp_path / TAR} and {tmp_path}/train/shard-000001.tar"
    assert problem == f"{tars}: a key of 'train' in two shards (double samples)"


def test_thousands_of_problems_are_counted_not_listed(tmp_path: Path) -> None:
    many = [One(f"{n:08d}-x", (0,), encode(n)) for n in range(60)]
    manifest = write_set(tmp_path, {"train": [many]})
    write_tar(tmp_path / TAR, [(name, b"1") for name, _ in read_tar(tmp_path / TAR)])
    vouch(tmp_path, manifest)
    problems = _problems(tmp_path)
    assert sum("... and 40 more of this kind" in problem for problem in problems) == 1


def test_decoding_finds_what_was_never_an_image(tmp_path: Path) -> None:
    whole, cut = One("0-cat", (0,), encode(1)), One("1-cat", (1,), encode(2, width=64, height=64))
    manifest = write_set(tmp_path, {"train": [[whole, cut._replace(image=cut.image[:-900])]]})
    assert manifest.num_classes == 2
    assert verify(tmp_path, 1) == (2, [])
    (problem,) = verify(tmp_path, 1, decode=True)[1]
    assert problem.startswith(f"{tmp_path / TAR}: key '1-cat': ")


def test_decoding_keeps_to_the_limits_of_the_build(tmp_path: Path) -> None:
    clean = {"max_pixels": 200, "min_side": 32}
    ones = [One("0-cat", (0,), encode(1)), One("1-cat", (0,), encode(2, width=20))]
    write_set(tmp_path, {"train": [ones]}, clean=clean)
    (problem,) = verify(tmp_path, 1, decode=True)[1]
    assert "key '1-cat': 20x12" in problem


def test_without_a_manifest_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no finished set of shards"):
        verify(tmp_path, 1)


def test_build_json_needs_the_digest_of_its_content(shards: Path) -> None:
    values = json.loads((shards / "build.json").read_text())
    values["options"]["name"] = "other"
    (shards / "build.json").write_text(json.dumps(values, indent=2) + "\n")
    assert "build.json" in _problems(shards)[0]
    del values["digest"]
    for hostile in ("NaN", "[" * 5000, '{"digest": NaN}', "9" * 5000):
        (shards / "build.json").write_text(f"{hostile}\n")
        assert "build.json: was changed" in _problems(shards)[0]
    values = {"digest": hashlib.sha256(canonical_json(values).encode()).hexdigest(), **values}
    (shards / "build.json").write_text(json.dumps(values, indent=2) + "\n")
    assert _problems(shards) == []


def test_damage_never_raises(shards: Path) -> None:
    """Files of noise, of nothing and of pieces, each under every name of a set."""
    rng = np.random.default_rng(3)
    for path in sorted(shards.rglob("*")):
        if path.is_dir() or path.name == "manifest.json":
            continue
        data = path.read_bytes()
        for content in (b"", rng.bytes(2000), data[:100], data + b"\0" * 512, data[512:]):
            path.write_bytes(content)
            assert _problems(shards) or content == data, path
        path.write_bytes(data)
