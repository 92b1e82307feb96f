"""Building shards: the same bytes every time, and what is on record of it."""

import errno
import fcntl
import json
import tarfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import data_prep.write as write
from data_prep.build import dry_run, run_stage
from data_prep.build_command import STAGES
from data_prep.failure import Failed
from data_prep.options import BuildSpec
from data_prep.sources import Source
from data_prep.stages import Job
from data_prep.verify import verify
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Holdout, Manifest, load_manifest
from pipeline.spec import Misuse
from tests.unit.data_prep.killing import run_command

MakeTree = Callable[..., Path]
MakeTar = Callable[[Path, Mapping[str, bytes]], Path]
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
    options = {"holdouts": {"eval": {"fraction": 0.25}}, "shard_samples": 5}
    tree = make_tree({"cat": 15, "dog": 9})
    run_build(tree, "one", workers=1, **options)
    (tmp_path / "elsewhere").mkdir()
    tree.rename(tmp_path / "elsewhere" / "raw")
    run_build(tmp_path / "elsewhere/raw", "two", workers=2, **options)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    # four shards to train on and two to evaluate with, each a tar and two indices
    assert len(digests(tmp_path / "one")) == 3 * (4 + 2) + 3


def test_what_becomes_of_every_file_is_on_record(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, encode: Encode
) -> None:
    tree = make_tree({"cat": 3, "dog": 3})
    (tree / "cat/notes.txt").write_text("not an image")
    (tree / "cat/half.jpg").write_bytes(encode(width=64, height=64)[:2000])
    (tree / "dog/empty.jpg").touch()
    (tree / "dog/n02105855_2933.JPEG").write_bytes(encode(kind="PNG", mode="RGBA"))
    (tree / "dog/twin.jpg").write_bytes((tree / "cat/0000.jpg").read_bytes())
    (tree / "stray.jpg").write_bytes(encode())
    manifest = run_build(tree, duplicates="drop")
    assert manifest.split("train").num_samples == 7
    raw = (tmp_path / "out/rejects.jsonl").read_bytes()
    assert sha256(raw).hexdigest() == manifest.rejects_sha256
    lines = [json.loads(line) for line in raw.splitlines()]
    assert {(line["what"], line["file"]) for line in lines} == {
        ("rejected", "stray.jpg"),
        ("rejected", "cat/half.jpg"),
        ("rejected", "cat/notes.txt"),
        ("rejected", "dog/empty.jpg"),
        ("dropped", "dog/twin.jpg"),
        ("repaired", "dog/n02105855_2933.JPEG"),
    }
    assert all(line["kind"] and line["reason"] for line in lines)
    assert [line["what"] for line in lines] == ["rejected"] * 4 + ["dropped", "repaired"]
    counts = [getattr(manifest, what).count for what in ("rejected", "dropped", "repaired")]
    assert counts == [4, 1, 1]
    assert manifest.repaired.first[0].file == "dog/n02105855_2933.JPEG"
    assert verify(tmp_path / "out", 1, decode=True) == (7, [])


def test_the_manifest_says_how_and_from_what(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 6, "dog": 6})
    holdouts = {"eval": {"fraction": 0.25}, "minival": {"count": 1}, "held": {"first": 2}}
    manifest = run_build(tree, holdouts=holdouts, seed=7)
    assert manifest.holdouts == {
        "eval": Holdout(rule="fraction", value=0.25, seed=7),
        "held": Holdout(rule="first", value=2),
        "minival": Holdout(rule="count", value=1, seed=7),
    }
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {
        "train": 3,
        "eval": 3,
        "held": 4,
        "minival": 2,
    }
    assert manifest.sources == ("raw",) and manifest.layout == "folders"
    assert manifest.clean["orientation"] == "keep" and manifest.transcode["kind"] == "none"
    images = [path.stat().st_size for path in tree.glob("*/*.jpg")]
    assert manifest.bytes_before == manifest.bytes_after == sum(images)
    info = json.loads((tmp_path / "out/_info.json").read_text())
    assert info["splits"]["minival"]["filenames"] == ["minival/shard-000000.tar"]
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()


def test_splits_of_the_source_are_folders_or_a_source_of_their_own(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"train/cat": 3, "test/cat": 2})
    assert run_build(tree, "a").holdouts == {"eval": Holdout(rule="folders")}
    train, held = make_tree({"cat": 3}, "train-raw"), make_tree({"cat": 2}, "eval-raw")
    manifest = run_build(train, "b", eval_source=held)
    assert manifest.holdouts == {"eval": Holdout(rule="source")}
    assert manifest.sources == ("train-raw", "eval-raw")
    assert manifest.eval_twins == 2


def test_an_empty_class_may_be_kept(make_tree: MakeTree, run_build: RunBuild) -> None:
    manifest = run_build(make_tree({"cat": 2, "dog": 2, "unicorn": 0}), allow_empty=True)
    assert manifest.split("train").class_counts == (2, 2, 0)


def test_a_source_that_changes_under_the_build_is_named(
    make_tree: MakeTree, run_build: RunBuild, monkeypatch: pytest.MonkeyPatch, encode: Encode
) -> None:
    tree = make_tree({"cat": 3})
    real = write._read_window

    def change(*its: Any) -> list[bytes]:
        (tree / "cat/0001.jpg").write_bytes(encode(99))
        return real(*its)

    monkeypatch.setattr(write, "_read_window", change)
    with pytest.raises(Failed, match=r"'cat/0001\.jpg' changed while shards were built"):
        run_build(tree)

    def remove(*its: Any) -> list[bytes]:
        (tree / "cat/0002.jpg").unlink()
        return real(*its)

    monkeypatch.setattr(write, "_read_window", remove)
    with pytest.raises(Failed, match=r"'cat/0002\.jpg' can no longer be read"):
        run_build(tree)


def _job(source: Path, out: Path, **options: Any) -> Job:
    values = {"name": "test", "shard_samples": 4, **options}
    return Job((Source(source),), out, BuildSpec.parse(values, "test"))


def test_elements_of_an_array_build_the_same(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, digests: Digests
) -> None:
    """As an array does: stage by stage, the elements in any order, one of them twice."""
    tree = make_tree({"cat": 50, "dog": 45})
    options = {"holdouts": {"eval": {"count": 5}}}
    run_build(tree, "whole", shard_samples=4, **options)
    job = _job(tree, tmp_path / "out", **options)
    for stage in STAGES:
        elements = [(2, 3), (0, 3), (1, 3), (0, 3)] if stage in ("check", "write") else [(0, 1)]
        done = [run_stage(job, stage, element) for element in elements]
        assert done == [stage == "finish"] * len(elements)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert run_stage(job, "write", (1, 3)) and not (tmp_path / "out/.build").exists()


def test_elements_run_at_the_same_time(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, digests: Digests, repo: Path
) -> None:
    tree, out = make_tree({"cat": 80, "dog": 80}), tmp_path / "out"
    run_build(tree, "whole", shard_samples=4)
    words = [tree, "--shard-samples", 4, "--workers", 1, "--stage"]
    for stage in STAGES:
        elements = range(2) if stage in ("check", "write") else range(1)
        processes = [
            run_command([*words, stage, "--element", f"{k}/{len(elements)}"], out, repo)
            for k in elements
        ]
        said = [process.communicate(timeout=60)[1].decode() for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), said
    assert digests(out) == digests(tmp_path / "whole")


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path,
    make_tree: MakeTree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(handle: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    job = _job(make_tree({"cat": 8}), tmp_path / "out")
    run_stage(job, "list")
    run_stage(job, "check", (0, 2))
    assert "the file system of OUT has no locks" in capsys.readouterr().err


def test_a_stage_too_early_names_the_one_that_is_missing(
    tmp_path: Path, make_tree: MakeTree
) -> None:
    tree = make_tree({"cat": 70})
    job = _job(tree, tmp_path / "out")
    with pytest.raises(Misuse, match=r"build\.json: missing; run stage list first"):
        run_stage(job, "check")
    run_stage(job, "list")
    run_stage(job, "check", (0, 3))
    with pytest.raises(Misuse, match=r"chunk 1 of 3 is not checked yet; run stage check again"):
        run_stage(job, "arrange")
    with pytest.raises(Misuse, match="run stage check again"):
        run_stage(job, "write")
    run_stage(job, "check")
    with pytest.raises(Misuse, match="not arranged yet; run stage arrange first"):
        run_stage(job, "write", (0, 2))
    run_stage(job, "arrange")
    run_stage(job, "write", (1, 2))
    with pytest.raises(Misuse, match=r"shard-000000\.tar: not written yet \(18 shards in all\)"):
        run_stage(job, "finish")
    with pytest.raises(Misuse, match="stage finish is one piece; only check and write"):
        run_stage(job, "finish", (0, 2))
    with pytest.raises(Misuse, match=r"options\.seed: 0 -> 3"):
        run_stage(_job(tree, tmp_path / "out", seed=3), "write", (0, 2))


def test_elements_and_builds_keep_out_of_each_others_way(
    tmp_path: Path, make_tree: MakeTree
) -> None:
    job = _job(make_tree({"cat": 8}), tmp_path / "out")
    run_stage(job, "list")
    locks = tmp_path / "out/.build"

    def held(name: str, kind: int, content: str = "") -> Any:
        file = (locks / name).open("a+")
        file.truncate(0)
        file.write(content)
        file.flush()
        fcntl.flock(file, kind)
        return file

    with held("lock", fcntl.LOCK_EX):
        with pytest.raises(Misuse, match="another build writes there"):
            run_stage(job, "check")
        with pytest.raises(Misuse, match="a build writes there; wait"):
            run_stage(job, "check", (0, 2))
    with held("lock", fcntl.LOCK_SH), held("lock-check", fcntl.LOCK_SH, "2"):
        with pytest.raises(Misuse, match="another build writes there"):
            run_stage(job, "check")
        with pytest.raises(Misuse, match="stage check runs in 2 elements now, not in 5"):
            run_stage(job, "check", (0, 5))
        with (
            held("lock-check-1", fcntl.LOCK_EX),
            pytest.raises(Misuse, match="element 1/2 of stage check runs already"),
        ):
            run_stage(job, "check", (1, 2))
        run_stage(job, "check", (0, 2))
    run_stage(job, "check", (3, 5))  # the array of two is over


def test_a_scratch_takes_what_is_not_for_long(
    tmp_path: Path, make_tar: MakeTar, encode: Encode, digests: Digests
) -> None:
    files = {f"cat/{n}.jpg": encode(n) for n in range(6)}
    source = make_tar(tmp_path / "raw.tar.gz", files)
    spec = BuildSpec(name="test")
    for out, scratch in (("a", None), ("b", tmp_path / "scratch")):
        job = Job((Source(source),), tmp_path / out, spec, scratch=scratch)
        run_stage(job, "list")
        assert bool(list((tmp_path / out).rglob("bucket-*"))) == (scratch is None)
        for stage in STAGES[1:]:
            run_stage(job, stage)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_dry_run_says_what_and_writes_nothing(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 3})
    said = dry_run(_job(tree, tmp_path / "out"))
    assert said == f"{tmp_path / 'out'}: would be built, layout folders, from 0.000 GB"
    assert not (tmp_path / "out").exists()
    run_build(tree, shard_samples=4)
    assert "is finished already" in dry_run(_job(tree, tmp_path / "out"))
    with pytest.raises(Misuse, match=r"options\.seed: 0 -> 1"):
        dry_run(_job(tree, tmp_path / "out", seed=1))
    assert load_manifest(tmp_path / "out").seed == 0
