"""Verification: every flipped bit is found, and the shard and the sample that it hit are named."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.verify import verify
from data_prep.write import sha256_of
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Manifest, load_manifest, save_manifest
from pipeline.spec import Misuse

MakeTree = Callable[..., Path]
RunBuild = Callable[..., Manifest]
Encode = Callable[..., bytes]
TAR = "train/shard-000000.tar"


@pytest.fixture
def shards(tmp_path: Path, make_tree: MakeTree, run_build: RunBuild) -> Path:
    run_build(make_tree({"cat": 4, "dog": 4}), holdout=0.25, shard_samples=3)
    return tmp_path / "out"


def test_whole_shards_pass(shards: Path) -> None:
    assert verify(shards, 1) == (8, [])


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "file",
    [TAR, "eval/shard-000000.tar", "train/shard-000001.idx.npy", "train/shard-000000.lab.npy"],
)
def test_every_flipped_bit_is_found_and_the_file_named(shards: Path, file: str) -> None:
    path = shards / file
    for bit in np.random.default_rng(0).integers(0, 8 * path.stat().st_size, 60).tolist():
        _flip(path, bit)
        _, problems = verify(shards, 1)
        assert any(file in problem for problem in problems), f"bit {bit} of {file}"
        _flip(path, bit)
    assert verify(shards, 1) == (8, [])


def test_every_flipped_bit_of_the_manifest_is_found(shards: Path) -> None:
    path = shards / "manifest.json"
    for bit in np.random.default_rng(1).integers(0, 8 * path.stat().st_size, 200).tolist():
        _flip(path, bit)
        _, problems = verify(shards, 1)
        assert problems and "manifest.json" in problems[0], f"bit {bit}"
        _flip(path, bit)


def test_a_flipped_bit_in_an_image_names_its_key(shards: Path) -> None:
    index = SplitIndex(shards, load_manifest(shards), "train")
    for sample_id in range(3):
        entry, key = index.entry(sample_id), index.key(sample_id)
        bit = 8 * (int(entry["offset"]) + int(entry["size"]) // 2)
        _flip(shards / TAR, bit)
        _, problems = verify(shards, 1)
        assert problems[0] == f"{shards / TAR}: key '{key}': the image is damaged (crc32c differs)"
        assert problems[1].endswith("sha256 differs from the manifest's")
        _flip(shards / TAR, bit)


def test_damage_around_the_image_names_the_member(shards: Path) -> None:
    index = SplitIndex(shards, load_manifest(shards), "train")
    entry, key = index.entry(1), index.key(1)
    label = int(entry["header"]) - 512  # the block of key.cls before the image's header
    cases = {
        label: f"key '{key}': labels",
        label + 100: f"member '{key}.cls': damaged padding",
        int(entry["header"]) + 2: f"after {key}.cls",
    }
    for byte, message in cases.items():
        _flip(shards / TAR, 8 * byte)
        _, problems = verify(shards, 1)
        assert message in problems[0], problems
        _flip(shards / TAR, 8 * byte)


def test_missing_cut_and_stray_tars_are_named(shards: Path) -> None:
    tar = shards / TAR
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) // 2])
    assert any("truncated or damaged tar" in problem for problem in verify(shards, 1)[1])
    tar.write_text("<html>")
    assert verify(shards, 1)[1]
    tar.unlink()
    assert verify(shards, 1)[1] == [f"{tar}: cannot be read: No such file or directory ({tar})"]
    tar.write_bytes(data)
    shutil.copy(tar, shards / "train/extra.tar")
    assert verify(shards, 1)[1] == [f"{shards}/train/extra.tar: is in no split of the manifest"]


def _rewrite(shards: Path, change: Callable[[list[tuple[str, bytes]]], object]) -> None:
    """Change the members of the first shard and write its digest into a valid manifest."""
    with tarfile.open(shards / TAR) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore
    change(members)
    with tarfile.open(shards / TAR, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    manifest = load_manifest(shards)
    train = manifest.split("train")
    first = train.shards[0].model_copy(update={"sha256": sha256_of(shards / TAR)})
    train = train.model_copy(update={"shards": (first, *train.shards[1:])})
    splits = {**manifest.splits, "train": train}
    save_manifest(shards, manifest.model_copy(update={"splits": splits}))


def test_an_index_of_another_tar_is_found_though_all_digests_agree(shards: Path) -> None:
    _rewrite(shards, lambda members: members.append(("zz.txt", b"x" * 2000)))
    assert "has members .txt; it needs exactly one of" in verify(shards, 1)[1][0]
    _rewrite(shards, lambda members: members.pop())
    assert verify(shards, 1)[1] == []
    _rewrite(shards, lambda members: members.__setitem__(0, (members[0][0], b"1" * 600)))
    problems = verify(shards, 1)[1]
    assert any("lies elsewhere than its index says" in problem for problem in problems)


def test_interleaved_double_and_code_members_are_found(shards: Path) -> None:
    _rewrite(shards, lambda members: members.insert(0, members.pop()))
    assert "comes again after other keys (interleaved or double)" in verify(shards, 1)[1][0]
    _rewrite(shards, lambda members: members.append(members.pop(0)))
    _rewrite(shards, lambda members: members.insert(1, ("zz.pyd", b"import os")))
    assert "zz.pyd' would be run as code" in verify(shards, 1)[1][0]


def test_a_key_in_two_shards_is_found(shards: Path) -> None:
    manifest = load_manifest(shards)
    train = manifest.split("train")
    train = train.model_copy(update={"shards": (*train.shards, train.shards[0])})
    save_manifest(
        shards, manifest.model_copy(update={"splits": {**manifest.splits, "train": train}})
    )
    problem = f"{shards / TAR} and {shards / TAR}: 3 keys of 'train' stand in two shards"
    assert verify(shards, 1)[1] == [problem]


def test_decoding_finds_what_was_never_an_image(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    import data_prep.checking as checking
    from data_prep.clean import GOOD, Verdict

    tree = make_tree({"cat": 2})
    (tree / "cat/0001.jpg").write_bytes(b"no image")
    monkeypatch.setattr(checking, "check", lambda data: Verdict(GOOD, "", "", 1, 1, data))
    run_build(tree)
    assert verify(tmp_path / "out", 1) == (2, [])
    (problem,) = verify(tmp_path / "out", 1, decode=True)[1]
    assert "cat-0001': no JPEG, PNG or WebP" in problem


def test_without_a_manifest_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no finished set of shards"):
        verify(tmp_path, 1)
