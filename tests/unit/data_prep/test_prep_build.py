"""Building shards: the same bytes every time, nothing half-written that looks whole."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import data_prep.write as write
from data_prep.failure import Failed
from data_prep.verify import verify
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.spec import Misuse

MakeTree = Callable[..., Path]
RunBuild = Callable[..., Manifest]
Digests = Callable[[Path], dict[str, str]]
Encode = Callable[..., bytes]


def test_a_shard_holds_the_files_byte_for_byte(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 3, "dog": 2})
    manifest = run_build(tree)
    with tarfile.open(tmp_path / "out/train/shard-000000.tar") as tar:
        members = {info.name: info for info in tar}
        for info in members.values():
            assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o444)
        index = SplitIndex(tmp_path / "out", manifest, "train")
        for sample_id in range(5):
            key = index.key(sample_id)
            _, name, number = key.split("-")
            image = tar.extractfile(members[f"{key}.jpg"])
            label = tar.extractfile(members[f"{key}.cls"])
            assert image is not None and label is not None
            assert image.read() == (tree / name / f"{number}.jpg").read_bytes()
            assert int(label.read()) == index.labels(sample_id)[0]
            assert manifest.labels.index(name) == index.labels(sample_id)[0]
            entry = index.entry(sample_id)
            assert (entry["width"], entry["height"]) == (16, 12)


def test_bytes_do_not_depend_on_workers_or_place(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, digests: Digests
) -> None:
    options = {"holdout": 0.25, "shard_samples": 5}
    tree = make_tree({"cat": 15, "dog": 9})
    run_build(tree, "one", workers=1, **options)
    tree.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "elsewhere-raw")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere-raw").rename(tmp_path / "elsewhere" / "raw")
    run_build(tmp_path / "elsewhere/raw", "two", workers=2, **options)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(digests(tmp_path / "one")) == 3 * (4 + 2) + 2  # tars with indices, two files


def test_rejects_are_listed_and_the_rest_is_built(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, encode: Encode
) -> None:
    tree = make_tree({"cat": 3, "dog": 3})
    (tree / "cat/notes.txt").write_text("not an image")
    (tree / "cat/half.jpg").write_bytes(encode(width=64, height=64)[:2000])
    (tree / "dog/empty.jpg").touch()
    (tree / "dog/n02105855_2933.JPEG").write_bytes(encode(kind="PNG", mode="RGBA"))
    (tree / "stray.jpg").write_bytes(encode())
    manifest = run_build(tree)
    assert manifest.split("train").num_samples == 7
    lines = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").open()]
    assert {line["file"]: line["kind"] for line in lines} == {
        "stray.jpg": "no class",
        "cat/half.jpg": "truncated",
        "cat/notes.txt": "not an image",
        "dog/empty.jpg": "empty file",
    }
    assert manifest.rejected.count == 4 and manifest.repaired.by_reason == {"PNG RGBA": 1}
    assert manifest.repaired.first[0].file == "dog/n02105855_2933.JPEG"
    assert verify(tmp_path / "out", 1, decode=True) == (7, [])


def test_an_empty_class_folder_is_named_with_the_remedy(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 2, "dog": 2, "unicorn": 0})
    with pytest.raises(Misuse, match=r"raw/unicorn: class 'unicorn' has no usable image.*--allow-"):
        run_build(tree)
    assert not (tmp_path / "out/manifest.json").exists()
    assert run_build(tree, allow_empty=True).split("train").class_counts == (2, 2, 0)


def test_a_class_of_rejects_only_is_an_empty_class(
    make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 2, "dog": 1})
    (tree / "dog/0000.jpg").write_bytes(b"")
    with pytest.raises(Misuse, match="class 'dog' has no usable image"):
        run_build(tree)


def test_the_same_command_again_changes_nothing(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, digests: Digests
) -> None:
    tree = make_tree({"cat": 4})
    manifest = run_build(tree)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    assert run_build(tree) == manifest
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}


def test_other_options_or_inputs_are_refused_with_what_differs(
    make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 4})
    run_build(tree)
    with pytest.raises(Misuse, match=r"options\.seed: 0 -> 1"):
        run_build(tree, seed=1)
    make_tree({"cat": 5})
    with pytest.raises(Misuse, match=r"inputs: \["):
        run_build(tree)


def test_an_interrupted_write_goes_on_and_keeps_finished_shards(
    tmp_path: Path,
    make_tree: MakeTree,
    run_build: RunBuild,
    digests: Digests,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = make_tree({"cat": 20})
    run_build(tree, "whole", shard_samples=4)
    real = write._write_tar

    def stop_at_third(task: write.ShardTask, path: Path) -> None:
        real(task, path)
        if "000002" in task.file:
            raise KeyboardInterrupt

    monkeypatch.setattr(write, "_write_tar", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run_build(tree, shard_samples=4)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.glob("train/*.tar")) == [
        "shard-000000.tar",
        "shard-000001.tar",
    ]
    assert not (out / "manifest.json").exists() and not list(out.glob("train/.*"))
    with pytest.raises(
        Misuse, match=r"begun with other inputs or options:\n  options.seed: 0 -> 3"
    ):
        run_build(tree, shard_samples=4, seed=3)
    damaged = out / "train/shard-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    monkeypatch.setattr(write, "_write_tar", real)
    run_build(tree, shard_samples=4)
    assert "1 of 5 shards were finished before and kept" in capsys.readouterr().out
    assert digests(out) == digests(tmp_path / "whole")


def test_kill_9_at_any_time_and_again_gives_the_same_bytes(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, digests: Digests, repo: Path
) -> None:
    tree = make_tree({"cat": 150, "dog": 150})
    run_build(tree, "whole", shard_samples=10, name="out")
    command = [sys.executable, "-m", "data_prep", "build", str(tree), str(tmp_path / "out")]
    command += ["--shard-samples", "10", "--workers", "1"]
    for _ in range(2):
        process = subprocess.Popen(command, cwd=repo, stderr=subprocess.DEVNULL)
        wanted = len(list(tmp_path.glob("out/train/*.tar"))) + 2
        while process.poll() is None and len(list(tmp_path.glob("out/train/*.tar"))) < wanted:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out/manifest.json").exists()
    subprocess.run(command, cwd=repo, check=True, capture_output=True, timeout=120)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_full_disk_names_path_and_need_and_leaves_no_part(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree({"cat": 8})
    real = os.fsync
    calls = []

    def fill_up(handle: int) -> None:
        name = str(Path(f"/proc/self/fd/{handle}").readlink())
        if name.endswith(".tar.tmp"):
            calls.append(name)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(Failed, match=r"train/shard-000001\.tar: the disk is full.*0\.000 GB more"):
        run_build(tree, shard_samples=4)
    assert [path.name for path in (tmp_path / "out/train").iterdir() if path.suffix == ".tar"] == [
        "shard-000000.tar"
    ]
    assert not list(tmp_path.rglob("*.tmp"))
    assert run_build(tree, shard_samples=4).split("train").num_samples == 8


def test_too_little_space_is_said_before_writing(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage: Any = type("Usage", (), {"free": 100})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Failed, match=r"out: the disk is full"):
        run_build(make_tree({"cat": 3}))
    assert not list(tmp_path.rglob("*.tar"))


def test_a_source_that_changes_under_the_build_is_named(
    make_tree: MakeTree, run_build: RunBuild, monkeypatch: pytest.MonkeyPatch, encode: Encode
) -> None:
    tree = make_tree({"cat": 3})
    real = write._read_all

    def change(task: write.ShardTask) -> list[bytes]:
        (tree / "cat/0001.jpg").write_bytes(encode(99))
        return real(task)

    monkeypatch.setattr(write, "_read_all", change)
    with pytest.raises(Failed, match=r"'cat/0001\.jpg' changed while shards were built"):
        run_build(tree)


def test_a_second_build_into_the_same_folder_is_refused(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 3})
    (tmp_path / "out/.build").mkdir(parents=True)
    with (tmp_path / "out/.build/lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Misuse, match="another build writes there"):
            run_build(tree)
    assert run_build(tree).num_classes == 1


def test_wrong_places_are_refused(tmp_path: Path, make_tree: MakeTree, run_build: RunBuild) -> None:
    tree = make_tree({"cat": 3})
    with pytest.raises(Misuse, match=r"inside: lies inside the source"):
        run_build(tree, "raw/inside")
    with pytest.raises(Misuse, match=r"nowhere: no such folder or tar"):
        run_build(tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.pdf").touch()
    with pytest.raises(Misuse, match=r"full: not empty, and not an unfinished build"):
        run_build(tree, "full")
    with pytest.raises(Misuse, match=r"thesis\.pdf: is a file"):
        run_build(tree, "full/thesis.pdf")


def test_two_ways_to_an_eval_split_conflict(make_tree: MakeTree, run_build: RunBuild) -> None:
    tree = make_tree({"train/cat": 3, "test/cat": 3})
    with pytest.raises(Misuse, match="the eval split is asked for twice"):
        run_build(tree, holdout=0.5)
    manifest = run_build(tree, holdout=0.34, splits={"train": "train"})
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {
        "train": 2,
        "eval": 1,
    }


def test_images_without_any_class_are_wrong_use(
    tmp_path: Path, make_tar: Callable[[Path, Mapping[str, bytes]], Path], run_build: RunBuild
) -> None:
    tar = make_tar(tmp_path / "flat.tar", {"a.jpg": b"x", "b.jpg": b"y"})
    with pytest.raises(Misuse, match=r"flat\.tar: no image lies in a class folder"):
        run_build(tar)


def test_webdataset_reads_what_was_built(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    import webdataset
    from PIL import Image
    from webdataset.compat import WebDataset

    # In its secure mode webdataset opens no local file by name.
    monkeypatch.setattr(webdataset.utils, "enforce_security", False)
    tree = make_tree({"cat": 4, "dog": 4})
    (tree / "dog/0000.jpg").write_bytes((tree / "cat/0000.jpg").read_bytes())
    manifest = run_build(tree, merge_duplicates=True)
    url = str(tmp_path / "out/train/shard-000000.tar")
    found = list(WebDataset(url, shardshuffle=False, empty_check=False))
    index = SplitIndex(tmp_path / "out", load_manifest(tmp_path / "out"), "train")
    assert len(found) == len(index) == manifest.split("train").num_samples == 7
    for sample_id, sample in enumerate(found):
        assert sample["__key__"] == index.key(sample_id)
        assert int(sample["cls"]) == index.labels(sample_id)[0]
        assert Image.open(io.BytesIO(sample["jpg"])).size == (16, 12)
    several = [json.loads(sample["json"]) for sample in found if "json" in sample]
    assert several == [{"labels": [0, 1], "classes": ["cat", "dog"]}]
