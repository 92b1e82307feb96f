"""Manifest, indexes and shards from wherever `data.path` says, and the cache that lanes need."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import sources
from pipeline.data.augment import AugmentSpec
from pipeline.data.index import SplitIndex
from pipeline.data.loader import TrainLoader
from pipeline.data.loading import LoaderSpec
from pipeline.data.manifest import FILE, Shard
from pipeline.data.order import Order
from pipeline.data.places import LocalPlaces, PlacesSpec, ShardGone
from pipeline.data.reader import ShardReader
from pipeline.data.sources import needed_bytes, open_index, open_manifest
from pipeline.spec import Failure, Misuse
from tests.unit.data.faulty_server import Fault, serving

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.fixture
def spec(tmp_path) -> PlacesSpec:
    return PlacesSpec(folder=str(tmp_path / "node"), retries=2, timeout_s=2)


def test_a_folder_is_read_where_it_lies(shards, spec):
    for own in (PlacesSpec(), spec, PlacesSpec(kind="direct")):
        manifest = open_manifest(str(shards.folder), own)
        index = open_index(str(shards.folder), own, manifest, "train")
        assert isinstance(index.places, LocalPlaces)
        assert index.folder == shards.folder
    assert not Path(spec.folder).exists()


def test_a_folder_may_be_read_through_a_cache(shards, spec, make_jpeg):
    own = spec.model_copy(update={"kind": "cache"})
    reader = ShardReader(open_index(str(shards.folder), own, shards.manifest, "train"))
    assert reader.read(50) == make_jpeg(50)
    assert len(list(Path(spec.folder).rglob("*.tar"))) == 1


def test_a_url_gives_the_same_manifest_and_index(shards, server, spec):
    manifest = open_manifest(server.url + "/", spec)
    assert manifest == shards.manifest
    index, local = open_index(server.url, spec, manifest, "train"), shards.index()
    assert len(index) == len(local)
    for sample_id in (0, 50, 102):
        assert index.entry(sample_id) == local.entry(sample_id)
        assert index.labels(sample_id) == local.labels(sample_id)
        assert index.key(sample_id) == local.key(sample_id)


def test_a_manifest_is_taken_only_if_it_is_whole_and_right(server, spec):
    server.faults[FILE] = [Fault(cut=300), Fault(lie=-100), Fault(status=503)]
    assert open_manifest(server.url, spec).name == "test"
    server.always(FILE, Fault(lie=-100))
    with pytest.raises(Misuse, match=rf"{server.url}/{FILE}: cannot be read"):
        open_manifest(server.url, spec)
    server.always(FILE, Fault(page=True))
    where = rf"field 'data\.path' is '{server.url}': {server.url}/{FILE}: "
    with pytest.raises(Misuse, match=where + "a web page came instead.*; correct the URL, or make"):
        open_manifest(server.url, spec)
    server.always(FILE, Fault(status=404))
    with pytest.raises(Misuse, match=where + "the server answers 404.*; correct the URL, or make"):
        open_manifest(server.url, spec)
    assert list(Path(spec.folder).iterdir()) == []


def test_a_manifest_that_was_edited_is_refused(make_shards, spec):
    made = make_shards([3])
    path = made.folder / FILE
    path.write_text(path.read_text().replace('"tests"', '"other"'))
    with serving(made.folder) as server, pytest.raises(Misuse, match="field 'digest'"):
        open_manifest(server.url, spec)


def test_indexes_are_verified(server, shards, spec):
    file = shards.index().shards[2].index_file
    server.faults[file] = [Fault(cut=10), Fault(lie=-9), Fault(status=500)]
    open_index(server.url, spec, shards.manifest, "train")
    shutil.rmtree(spec.folder)
    server.always(file, Fault(garbage=True))
    with pytest.raises(ShardGone, match=rf"{server.url}/{file}: its sha256 differs"):
        open_index(server.url, spec, shards.manifest, "train")
    assert not list(Path(spec.folder).rglob(FILE))  # without it a folder is no data set


def test_an_index_that_is_not_at_its_source_is_named_with_the_remedy(server, shards, spec):
    file = shards.index().shards[2].index_file
    server.always(file, Fault(status=404))
    told = rf"{server.url}/{file}: the server answers 404 .*`data\.path` is right, then restore"
    with pytest.raises(ShardGone, match=told):
        open_index(server.url, spec, shards.manifest, "train")


@pytest.mark.parametrize("suffix", [".idx.npy", ".lab.npy"])
@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), lambda raw: b"", lambda raw: None],
    ids=["flipped", "empty", "missing"],
)
def test_a_damaged_index_in_a_cache_is_brought_again(server, shards, spec, suffix, damage):
    index = open_index(server.url, spec, shards.manifest, "train")
    path = index.folder / "train" / f"shard-000001{suffix}"
    raw = path.read_bytes()
    damaged = damage(raw)
    path.write_bytes(damaged or b"")
    if damaged is None:
        path.unlink()
    server.asked.clear()
    assert index.labels(5) == shards.index().labels(5)
    assert index.entry(5) == shards.index().entry(5)
    assert server.asked == [(f"train/shard-000001{suffix}", 0)]
    assert path.read_bytes() == raw
    assert not list(index.folder.rglob("*.part"))


def test_a_damaged_index_that_cannot_be_brought_again_is_named(server, shards, spec):
    index = open_index(server.url, spec, shards.manifest, "train")
    paths = [index.folder / index.shards[n].index_file for n in (1, 2)]
    paths[0].write_bytes(b"")
    server.always(index.shards[1].index_file, Fault(status=404))
    with pytest.raises(ShardGone, match=r"shard-000001\.idx\.npy: the server answers 404.*restore"):
        index.labels(5)
    paths[1].unlink()
    paths[1].mkdir()
    told = rf"{paths[1]}: has other bytes .* again \(Is a directory\); remove it"
    with pytest.raises(Failure, match=told):
        index.labels(45)


def test_a_damaged_index_of_a_folder_is_still_refused(make_shards):
    made = make_shards([3])
    (made.folder / made.index().shards[0].index_file).write_bytes(b"")
    with pytest.raises(Misuse, match=r"sha256 differs .*data_prep verify` on its folder"):
        made.index().labels(0)


def test_two_versions_of_a_data_set_never_mix(make_shards, spec, make_jpeg):
    made = make_shards([3, 3])
    with serving(made.folder) as server:
        old = open_index(server.url, spec, open_manifest(server.url, spec), "train")
        assert ShardReader(old).read(5) == make_jpeg(5)
        made = make_shards([3, 3], images=lambda n: make_jpeg(n + 100))
        new = open_index(server.url, spec, open_manifest(server.url, spec), "train")
        assert new.folder != old.folder
        assert ShardReader(new).read(5) == make_jpeg(105)
        assert ShardReader(old).read(5) == make_jpeg(5)  # its copy is still there


def test_a_url_needs_a_folder_on_the_node(server, shards):
    with pytest.raises(Misuse, match="data.shards.folder"):
        open_manifest(server.url, PlacesSpec())
    with pytest.raises(Misuse, match="data.shards.kind' is direct"):
        open_index(server.url, PlacesSpec(kind="direct"), shards.manifest, "train")


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    spec = PlacesSpec(folder=str(tmp_path / "file" / "cache"))
    with pytest.raises(Failure, match=r"data\.shards\.folder' is '.*file/cache': Not a directory"):
        open_manifest(server.url, spec)


def test_a_cache_too_small_for_the_lanes_is_refused_with_the_number_that_fits(
    server, shards, spec, make_jpeg
):
    own = spec.model_copy(update={"max_gb": 1e-5})
    with pytest.raises(
        Misuse, match=r"the 4 lanes of this node may have .* set it to (\S+) or"
    ) as error:
        open_index(server.url, own, shards.manifest, "train", lanes=4, window=16)
    told = re.search(r"set it to (\S+) or more", str(error.value))
    assert told
    own = spec.model_copy(update={"max_gb": float(told[1])})
    index = open_index(server.url, own, shards.manifest, "train", lanes=4, window=16)
    assert ShardReader(index).read(0) == make_jpeg(0)


def test_a_disk_too_small_for_the_lanes_is_refused(server, shards, spec, monkeypatch):
    usage = sources.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda path: usage)
    told = r"the 4 lanes of this node may need 0\.000\d+ GB of shards at once, the disk has"
    with pytest.raises(Failure, match=told):
        open_index(server.url, spec, shards.manifest, "train", lanes=4, window=16)
    with pytest.raises(Failure, match="the one lane of this node may need"):
        open_index(server.url, spec, shards.manifest, "train")


def test_shards_that_come_ahead_need_room_too(server, shards, spec):
    two = needed_bytes(shards.index().shards, 2, 4) / 1e9 + 1e-8
    own = spec.model_copy(update={"max_gb": two, "ahead_steps": 0})
    open_index(server.url, own, shards.manifest, "train", lanes=2, window=4)
    own = own.model_copy(update={"ahead_steps": 1})
    with pytest.raises(Misuse, match="the 2 lanes of this node"):
        open_index(server.url, own, shards.manifest, "train", lanes=2, window=4)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_from_a_bad_server_are_those_of_the_folder(
    server, shards, spec, fake, workers
):
    for record in shards.index().shards:
        server.faults[record.file] = [Fault(cut=3000), Fault(status=503), Fault(page=True)]
    need = needed_bytes(shards.index().shards, 8, 8) / 1e9 + 1e-8
    own = spec.model_copy(update={"max_gb": need, "ahead_steps": 2})
    remote = open_index(server.url, own, shards.manifest, "train", lanes=4, window=8)
    taken = [_batches(index, fake, workers) for index in (shards.index(), remote)]
    for one, other in zip(*taken, strict=True):
        assert one[0] == other[0]
        assert one[1] == other[1]


def _batches(index: SplitIndex, fake: Any, workers: int) -> list[tuple[list[int], bytes]]:
    """Return (ids, pixels) of the micro-batches of 12 steps."""
    loader = TrainLoader(
        index,
        Order(len(index), 0, lanes=4, window=8),
        fake.plan(12),
        16,
        0,
        1,
        AugmentSpec(),
        0,
        LoaderSpec(workers=workers, lanes=4, window=8),
        ahead_steps=index.places.ahead_steps,
    )
    try:
        steps = loader.steps(0)
        return [(b.ids.tolist(), b.images.numpy().tobytes()) for step in steps for b in step]
    finally:
        loader.close()


def shard(num_samples: int, num_bytes: int) -> Shard:
    digests = {f"{name}sha256": "0" * 64 for name in ("", "index_", "labels_")}
    return Shard(file="a.tar", num_samples=num_samples, num_bytes=num_bytes, **digests)


@pytest.mark.parametrize(
    ("lanes", "window", "expected"),
    [
        (1, 1, 10),  # one sample is in one shard
        (1, 2, 20),  # two may be in two
        (1, 100, 20),
        (1, 101, 20),  # 1 + 100 of the next
        (1, 102, 30),
        (2, 100, 40),
        (7, 100, 100),  # never more than there is
        (1, 0, 100),  # whole lanes may be anywhere
        (1, 10**9, 100),
    ],
)
def test_what_lanes_need_is_computed(lanes, window, expected):
    assert needed_bytes([shard(100, 10)] * 10, lanes, window) == expected


def test_what_lanes_need_counts_the_largest_windows():
    shards = [shard(10, 1), shard(10, 50), shard(10, 40), shard(10, 1), shard(10, 30)]
    assert needed_bytes(shards, 1, 5) == 90
    assert needed_bytes(shards + [shard(10, 30)], 2, 5) == 90 + 60
    assert needed_bytes(shards, 2, 5) == 122  # all there is
    assert needed_bytes([], 3, 5) == 0


def test_brute_force_agrees_with_what_a_window_needs():
    counts = [3, 1, 7, 2, 2, 9, 1, 1, 4]
    shards = [shard(n, 10 + n) for n in counts]
    owner = [number for number, n in enumerate(counts) for _ in range(n)]
    for window in range(1, 33):
        most = max(
            sum(shards[n].num_bytes for n in set(owner[at : at + window]))
            for at in range(len(owner))
        )
        assert needed_bytes(shards, 1, window) == most


def test_settings_survive_a_recipe(spec):
    assert PlacesSpec.parse(json.loads(spec.model_dump_json()), "test") == spec
