"""Builds that are stopped: by Ctrl-C, a full disk, and kill -9 at any moment."""

import errno
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import data_prep.write as write
from data_prep.failure import Failed
from data_prep.verify import verify
from pipeline.data.manifest import Manifest
from pipeline.spec import Misuse
from tests.unit.data_prep.killing import build_undisturbed, build_with_kills

MakeTree = Callable[..., Path]
RunBuild = Callable[..., Manifest]
Digests = Callable[[Path], dict[str, str]]
Encode = Callable[..., bytes]

KILLS = 6


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
    real = write._write_samples

    def stop_at_third(*arguments: object) -> list[write.Written]:
        if arguments[2] == 8:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(write, "_write_samples", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run_build(tree, shard_samples=4)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.glob("train/*.tar")) == [
        "shard-000000.tar",
        "shard-000001.tar",
    ]
    assert not (out / "manifest.json").exists() and not list(out.glob("train/.*"))
    message = r"begun with other inputs or options:\n  options.seed: 0 -> 3"
    with pytest.raises(Misuse, match=message):
        run_build(tree, shard_samples=4, seed=3)
    damaged = out / "train/shard-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    monkeypatch.setattr(write, "_write_samples", real)
    run_build(tree, shard_samples=4)
    assert "1 of 5 shards were finished before and kept" in capsys.readouterr().out
    assert digests(out) == digests(tmp_path / "whole")


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
    tars = [path.name for path in (tmp_path / "out/train").iterdir() if path.suffix == ".tar"]
    assert tars == ["shard-000000.tar"]
    assert not list(tmp_path.rglob("*.tmp"))
    assert run_build(tree, shard_samples=4).split("train").num_samples == 8


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, encode: Encode) -> Path:
    """Six class tars of twenty images of some size in one tar.gz, some of them odd."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "whole").mkdir()
    for number in range(6):
        with tarfile.open(folder / "whole" / f"n0000000{number}.tar", "w") as tar:
            for k in range(20):
                kind = "PNG" if k % 7 == 3 else "JPEG"
                image = folder / "image"
                image.write_bytes(encode(100 * number + k, kind=kind, width=200, height=160))
                tar.add(image, f"n0000000{number}_{k}.JPEG")
    with tarfile.open(folder / "whole.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.add(folder / "whole", "whole")
    return folder / "whole.tar.gz"


def test_kills_lose_and_double_nothing(
    tmp_path: Path, archive: Path, digests: Digests, repo: Path
) -> None:
    words = [archive, "--shard-samples", 8, "--holdout", "0.2"]
    took_s = build_undisturbed([*words, "--workers", 1], tmp_path / "whole", repo)
    out = tmp_path / "out"
    build_with_kills([*words, "--workers", 2], out, repo, took_s, KILLS)
    assert digests(out) == digests(tmp_path / "whole")
    assert verify(out, 1) == (120, [])
    assert not (out / ".build").exists() and not list(out.rglob("*.tmp"))
