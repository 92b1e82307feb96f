"""Staging: all shards on the node's disk before training, once, verified, bounded, resumed."""

import os
import pickle
from pathlib import Path

import pytest

from pipeline.data import fetch, staging
from pipeline.data.bad import BadSpec, read_replacing
from pipeline.data.cache import ShardCache
from pipeline.data.cached_places import CachedPlaces
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import load_manifest
from pipeline.data.places import PlacesSpec
from pipeline.data.reader import BrokenSample, ShardReader
from pipeline.data.sources import make_ready, open_index
from pipeline.spec import Failure, Misuse
from tests.unit.data import cache_user
from tests.unit.data.faulty_server import Fault, serving


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "node"


def staged(shards, folder: Path, max_gb: float = 1.0, **settings) -> SplitIndex:
    spec = PlacesSpec(kind="stage", folder=str(folder), max_gb=max_gb, retries=1, **settings)
    return open_index(str(shards.folder), spec, shards.manifest, "train")


def total_gb(shards) -> float:
    return sum(shard.num_bytes for shard in shards.index().shards) / 1e9


def copies(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.tar")}


def test_a_staged_folder_is_a_whole_data_set(shards, folder, make_jpeg):
    index = staged(shards, folder, total_gb(shards))
    assert load_manifest(index.folder).digest() == shards.manifest.digest()
    assert copies(folder) == copies(shards.folder)
    reader, plain = (
        ShardReader(index),
        ShardReader(SplitIndex(index.folder, shards.manifest, "train")),
    )
    for sample_id in range(103):
        assert reader.read(sample_id) == plain.read(sample_id) == make_jpeg(sample_id)
    assert str(folder) in str(index.places.path(0))


def test_after_staging_the_source_is_not_needed(make_shards, folder, make_jpeg):
    made = make_shards([3, 4])
    reader = ShardReader(staged(made, folder))
    for path in made.folder.rglob("*.tar"):
        path.unlink()
    assert [reader.read(n) for n in range(7)] == [make_jpeg(n) for n in range(7)]
    again = ShardReader(staged(made, folder))  # a restart copies nothing
    assert again.read(6) == make_jpeg(6)


def test_a_url_may_be_staged_too(shards, folder, make_jpeg):
    with serving(shards.folder) as server:
        server.faults["train/shard-000001.tar"] = [Fault(cut=50_000), Fault(status=500)]
        spec = PlacesSpec(kind="stage", folder=str(folder))
        index = open_index(server.url, spec, shards.manifest, "train")
    reader = ShardReader(index)
    assert [reader.read(n) for n in range(0, 103, 7)] == [make_jpeg(n) for n in range(0, 103, 7)]


def test_what_is_made_ready_is_found_at_once(make_shards, folder, make_jpeg):
    made = make_shards([3, 4])
    spec = PlacesSpec(kind="stage", folder=str(folder), ahead_steps=9)
    with serving(made.folder) as server:
        make_ready(server.url, spec, made.manifest, ["train"])
        server.asked.clear()
        index = open_index(server.url, spec, made.manifest, "train")
        assert server.asked == []
    assert ShardReader(index).read(6) == make_jpeg(6)
    assert index.places.ahead_steps == 0  # nothing comes from far any more


def test_an_interrupted_staging_goes_on(make_shards, folder):
    made = make_shards([3, 40, 5])
    lost = made.folder / "train" / "shard-000002.tar"
    lost.rename(lost.with_suffix(".away"))
    with pytest.raises(BrokenSample, match=f"{lost}: sample with id 43 .*: no such file"):
        ShardReader(staged(made, folder, connections=1)).read(43)
    had = {path: path.stat().st_ino for path in folder.rglob("*.tar")}
    lost.with_suffix(".away").rename(lost)
    staged(made, folder)
    assert copies(folder) == copies(made.folder)
    assert all(path.stat().st_ino == inode for path, inode in had.items())


def test_a_shard_that_differs_from_the_manifest_is_not_staged(make_shards, folder):
    made = make_shards([3, 40])
    tar = made.folder / "train" / "shard-000001.tar"
    raw = bytearray(tar.read_bytes())
    raw[5000] ^= 1
    tar.write_bytes(raw)
    reader = ShardReader(staged(made, folder))
    with pytest.raises(BrokenSample, match=f"{tar}: sample .*: its sha256 differs from the manif"):
        reader.read(5)
    assert "shard-000001.tar" not in copies(folder)


@pytest.mark.parametrize("fault", [Fault(status=404), Fault(garbage=True)])
def test_samples_of_a_shard_that_cannot_be_staged_count_as_broken(
    make_shards, folder, make_jpeg, fault
):
    """Told once while staging; whether they are replaced is up to the policy of bad samples."""
    made, said = make_shards([3, 5, 2]), []
    spec = PlacesSpec(kind="stage", folder=str(folder), retries=1)
    with serving(made.folder) as server:
        server.always("train/shard-000001.tar", fault)
        index = open_index(server.url, spec, made.manifest, "train", say=said.append)
    assert len(said) == 1
    assert f"{server.url}/train/shard-000001.tar: " in said[0]
    for reader in (ShardReader(index), pickle.loads(pickle.dumps(ShardReader(index)))):
        assert [reader.read(n) for n in (0, 9)] == [make_jpeg(0), make_jpeg(9)]
        with pytest.raises(BrokenSample, match=rf"{server.url}/train/shard-000001.tar: .*id 4 "):
            read_replacing(4, reader.read, BadSpec(), 0, 10)
        data, replaced = read_replacing(4, reader.read, BadSpec(policy="budget"), 0, 10)
        assert replaced and data == make_jpeg(replaced.by) and replaced.by not in range(3, 8)


def test_a_disk_that_returns_errors_is_named(make_shards, folder):
    made = make_shards([3, 4])
    tar = made.folder / "train" / "shard-000001.tar"
    tar.unlink()
    tar.symlink_to("/proc/self/mem")  # reading its first bytes is an I/O error
    with pytest.raises(Failure, match=rf"{tar}: cannot be read \(Input/output error\)"):
        staged(made, folder)


def test_a_bound_that_is_too_small_is_refused_with_the_number_needed(shards, folder):
    with pytest.raises(Misuse, match=r"data\.shards\.max_gb' is 1e-05: .* set it to 0\.01 or more"):
        staged(shards, folder, 1e-5)
    assert not copies(folder)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_copied(shards, folder, monkeypatch):
    usage = staging.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Failure, match=r"needs 0\.000\d+ GB more, the disk has 1e-06 GB"):
        staged(shards, folder)
    assert not copies(folder)


def test_processes_of_a_node_share_the_work(shards, folder):
    with serving(shards.folder) as server:
        settings = {"kind": "stage", "folder": str(folder), "connections": 2}
        others = [cache_user.start(server.url, [0, 50, 102], **settings) for _ in range(3)]
        outs = {other.communicate()[0] for other in others}
    assert len(outs) == 1
    assert outs.pop().startswith("open\n")
    asked = [file for file, _ in server.asked if file.endswith(".tar")]
    assert sorted(asked) == [shard.file for shard in shards.index().shards]


def test_another_job_cannot_push_staged_shards_out(shards, make_shards, folder):
    index = staged(shards, folder, total_gb(shards) + 2e-5)
    other = make_shards([2, 2, 2, 2])
    crowd = PlacesSpec(kind="cache", folder=str(folder), max_gb=total_gb(shards) + 2e-5)
    reader = ShardReader(open_index(str(other.folder), crowd, other.manifest, "train"))
    for sample_id in range(8):
        reader.read(sample_id)
    reader.close()
    assert {shard.file.rpartition("/")[2] for shard in index.shards} <= set(copies(index.folder))
    assert isinstance(index.places, CachedPlaces) and index.places.kept
    index.places.kept.close()  # the job has ended
    tight = ShardCache(folder, int(total_gb(shards) * 1e9))
    (folder / "next").mkdir()
    part = tight.admit(folder / "next" / "x.tar", index.shards[1].num_bytes, 0)
    assert part
    part.close()
    assert len(list(index.folder.rglob("*.tar"))) < 7


def test_it_says_how_far_it_is(shards, folder, monkeypatch):
    monkeypatch.setattr(staging, "SAY_S", 0.0)
    said: list[str] = []
    spec = PlacesSpec(kind="stage", folder=str(folder))
    open_index(str(shards.folder), spec, shards.manifest, "train", say=said.append)
    assert said
    assert all(line.startswith("staging split 'train' of ") for line in said)
    assert "7 of 7 shards" in said[-1]


def test_a_staged_copy_that_goes_bad_is_copied_again(shards, folder, make_jpeg):
    index = staged(shards, folder)
    tar = index.tar(1)
    with tar.open("r+b") as file:
        file.seek(int(index.entry(5)["offset"]))
        file.write(bytes(50))
    os.utime(tar)
    assert ShardReader(index).read(5) == make_jpeg(5)


def test_after_an_error_nothing_new_is_begun(make_shards, folder):
    made = make_shards([2] * 30)
    with serving(made.folder) as server:
        for number in range(30):
            server.always(f"train/shard-{number:06d}.tar", Fault(status=403))
        spec = PlacesSpec(kind="stage", folder=str(folder), connections=2)
        with pytest.raises(Failure, match="403"):
            open_index(server.url, spec, made.manifest, "train")
        assert len([file for file, _ in server.asked if file.endswith(".tar")]) < 10
