"""What a build refuses before it works: wrong places, other builds' folders, too small disks."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.failure import Failed
from data_prep.plan import PLAN, digest_of, read_plan, state_of
from pipeline.data.manifest import Manifest
from pipeline.spec import Misuse

MakeTree = Callable[..., Path]
MakeTar = Callable[[Path, Mapping[str, bytes]], Path]
RunBuild = Callable[..., Manifest]
Encode = Callable[..., bytes]


def test_the_same_command_again_changes_nothing(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 4})
    manifest = run_build(tree)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run_build(tree) == manifest
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_other_options_or_inputs_are_refused_with_what_differs(
    make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 4})
    run_build(tree)
    with pytest.raises(Misuse, match=r"options\.seed: 0 -> 1"):
        run_build(tree, seed=1)
    make_tree({"cat": 5})
    with pytest.raises(Misuse, match=r"inputs: \['4 files, \w+'\] -> \['5 files"):
        run_build(tree)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"class 'unicorn' has no usable image to train on \(1 such classes\).*--allow-empty"),
        ({"allow_empty": True, "holdouts": {"eval": {"fraction": 0.01}}}, "it takes none of 4 im"),
        ({"allow_empty": True, "holdouts": {"train": {"count": 1}}}, "no holdout is train"),
        ({"classes": ["cat", "dog"]}, "the source has no class 'dog'; similar: "),
    ],
)
def test_choices_that_cannot_be_are_said_before_images_are_read(
    options: dict[str, object],
    message: str,
    tmp_path: Path,
    make_tree: MakeTree,
    run_build: RunBuild,
) -> None:
    tree = make_tree({"cat": 4, "unicorn": 0})
    with pytest.raises(Misuse, match=message):
        run_build(tree, **options)
    assert not (tmp_path / "out/.build/check").exists()


def test_before_there_is_a_shard_options_may_change(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 4, "unicorn": 0})
    with pytest.raises(Misuse, match="has no usable image"):
        run_build(tree)
    assert run_build(tree, allow_empty=True, seed=4).seed == 4


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 100_000])
def test_a_damaged_plan_is_written_again_while_there_is_no_shard(
    content: bytes, tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 4, "unicorn": 0})
    with pytest.raises(Misuse, match="has no usable image"):
        run_build(tree)
    (tmp_path / "out" / PLAN).write_bytes(content)
    assert run_build(tree, allow_empty=True).split("train").num_samples == 4


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Misuse, match=r"file/out: no folder can be made there.*another OUT"):
        run_build(make_tree({"cat": 4}), "file/out")


def test_a_class_of_rejects_only_is_an_empty_class(
    make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 2, "dog": 1})
    (tree / "dog/0000.jpg").write_bytes(b"")
    with pytest.raises(Misuse, match="class 'dog' has no usable image"):
        run_build(tree)
    (tree / "dog/0001.jpg").write_bytes((tree / "cat/0000.jpg").read_bytes())
    assert run_build(tree).split("train").num_samples == 3, "the same command sees the remedy"


def test_the_plan_vouches_for_itself(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 4})
    run_build(tree)
    path = tmp_path / "out" / PLAN
    saved = json.loads(path.read_text())
    assert saved.pop("digest") == digest_of(saved) and read_plan(tmp_path / "out") == saved
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert read_plan(tmp_path / "out") is None
    with pytest.raises(Misuse, match="was begun with other inputs or options"):
        run_build(tree)


def test_the_state_of_a_folder_is_that_of_its_files(tmp_path: Path, make_tree: MakeTree) -> None:
    tree = make_tree({"cat": 3, "dog": 2})
    before = state_of(tree)
    assert before.num_bytes == sum(path.stat().st_size for path in tree.glob("*/*"))
    (tree / ".DS_Store").touch()
    (tree / "cat/.git").mkdir()
    (tree / "around").symlink_to(tree)
    assert state_of(tree) == before
    (tree / "nowhere").symlink_to(tmp_path / "nowhere")
    assert state_of(tree) != before
    (tree / "nowhere").unlink()
    (tree / "cat/0000.jpg").touch()
    assert state_of(tree).text != before.text


def test_wrong_places_are_refused(tmp_path: Path, make_tree: MakeTree, run_build: RunBuild) -> None:
    tree = make_tree({"cat": 3})
    with pytest.raises(Misuse, match=r"inside: lies inside the source"):
        run_build(tree, "raw/inside")
    with pytest.raises(Misuse, match=r"nowhere: no such folder or archive"):
        run_build(tmp_path / "nowhere")
    with pytest.raises(Misuse, match=r"--layout 'imagnet' is unknown; there are: folders, "):
        run_build(tree, layout="imagnet")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.pdf").touch()
    with pytest.raises(Misuse, match=r"full: not empty, and not an unfinished build"):
        run_build(tree, "full")
    with pytest.raises(Misuse, match=r"thesis\.pdf: is a file"):
        run_build(tree, "full/thesis.pdf")


def test_an_eval_split_asked_for_twice_is_said_before_images_are_read(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"train/cat": 3, "test/cat": 3})
    with pytest.raises(Misuse, match="the eval split is asked for twice"):
        run_build(tree, holdouts={"eval": {"fraction": 0.5}})
    assert not (tmp_path / "out/.build/check").exists()
    holdouts = {"eval": {"fraction": 0.34}}
    manifest = run_build(tree, holdouts=holdouts, splits={"train": "train"})
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {
        "train": 2,
        "eval": 1,
    }


def test_another_set_that_is_gone_is_said_before_images_are_read(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    run_build(make_tree({"cat": 3}, "a"), "other")
    other = str(tmp_path / "other")
    tree = make_tree({"cat": 5}, "b")
    manifest = run_build(tree, against=[other])
    assert manifest.split("train").num_samples == 2 and manifest.dropped.count == 3
    assert len(manifest.against) == 1
    with pytest.raises(Misuse, match="no such folder of shards"):
        run_build(tree, "c", against=[str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("suffix", "left"), [("", 8), (":eval", 8), (":train", 2), (":train,eval", 1)]
)
def test_another_sets_held_out_images_leave_and_those_of_other_splits_where_asked(
    suffix: str,
    left: int,
    tmp_path: Path,
    make_tree: MakeTree,
    encode: Encode,
    run_build: RunBuild,
) -> None:
    """Without a word only what must stay unseen goes: not the images that both may train on."""
    tree = make_tree({"cat": 8})
    other = run_build(tree, "other", splits={}, holdouts={"eval": {"count": 1}})
    assert other.split("train").num_samples == 7
    (tree / "cat/new.jpg").write_bytes(encode(99))
    manifest = run_build(tree, against=[f"{tmp_path / 'other'}{suffix}"])
    assert manifest.split("train").num_samples == left
    splits = suffix[1:] or "eval"
    assert manifest.against == (f"{other.digest()}:{splits}",)


def test_another_sets_split_must_be_there(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    run_build(make_tree({"cat": 3}, "a"), "other")
    with pytest.raises(Misuse, match="test"):
        run_build(make_tree({"cat": 3}, "b"), against=[f"{tmp_path / 'other'}:test"])


@pytest.mark.parametrize(
    "name", ["", "my eval", "über", ".build", "../../evil", "/abs", "a/b", "-x", "x" * 41]
)
def test_a_split_cannot_be_called_what_is_no_plain_name(
    name: str, tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 4})
    for choice in ({"holdouts": {name: {"count": 1}}}, {"splits": {"cat": name}}):
        with pytest.raises(Misuse, match="should match pattern"):
            run_build(tree, **choice)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"], "before any work"


def test_too_little_room_is_said_before_images_are_read(
    tmp_path: Path,
    make_tree: MakeTree,
    make_tar: MakeTar,
    encode: Encode,
    run_build: RunBuild,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = make_tree({"cat": 3})
    tar = make_tar(tmp_path / "raw.tar", {"cat/0.jpg": encode(0)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    message = r"out: about 0\.0\d\d GB more are needed there, 0\.000 GB are free; make room"
    with pytest.raises(Failed, match=message):
        run_build(tree)
    with pytest.raises(Failed, match=message):
        run_build(tar)
    assert not list(tmp_path.rglob("verdicts*")) and not list((tmp_path / "out").glob("*/*.tar"))


def test_a_shard_of_another_build_is_refused(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 3, "unicorn": 0})
    with pytest.raises(Misuse, match="unicorn"):
        run_build(tree)
    (tmp_path / "out/train").mkdir()
    (tmp_path / "out/train/shard-000007.idx.npy").touch()
    with pytest.raises(Failed, match=r"shard-000007\.idx\.npy: not a shard of this build"):
        run_build(tree, allow_empty=True)
