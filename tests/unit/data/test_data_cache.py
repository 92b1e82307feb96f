"""The cache: bounded for all processes together, never without a shard that is in use."""

import hashlib
import os
import random
import threading
import time

import pytest

from pipeline.data import cached_places
from pipeline.data.cache import ShardCache, hold, is_locked, part_of, remove_unused, touch
from pipeline.data.fetch import unlock
from pipeline.spec import Failure
from tests.unit.data import cache_user
from tests.unit.data.cached_shards import places_of, reader_of, tars
from tests.unit.data.faulty_server import Fault

pytestmark = pytest.mark.usefixtures("short_pauses")


def room_for(shards, *numbers: int) -> float:
    """Return the `max_gb` into which these shards fit, and not much more."""
    sizes = [shard.num_bytes for shard in shards.index().shards]
    return (sum(sizes[n] for n in numbers) + 100) / 1e9


def first_id(shards, number: int) -> int:
    return int(shards.index().starts[number])


def test_samples_come_right_and_each_shard_comes_once(server, shards, folder, make_jpeg):
    reader = reader_of(server.url, folder)
    for sample_id in [*range(103), *range(102, 0, -9)]:
        assert reader.read(sample_id) == make_jpeg(sample_id)
        assert reader.index.labels(sample_id) == shards.index().labels(sample_id)
    files = [file for file, _ in server.asked]
    assert len(files) == len(set(files)) == 1 + 3 * 7
    assert files[0] == "manifest.json"
    # all indexes came before the first shard
    assert [file.endswith(".tar") for file in files[14:16]] == [False, True]
    assert not list(folder.rglob("*.part"))


def test_a_second_start_asks_for_the_manifest_only(server, folder, make_jpeg):
    reader = reader_of(server.url, folder)
    assert [reader.read(n) for n in (0, 102)] == [make_jpeg(0), make_jpeg(102)]
    server.asked.clear()
    reader = reader_of(server.url, folder)
    assert [reader.read(n) for n in (0, 102)] == [make_jpeg(0), make_jpeg(102)]
    assert server.asked == [("manifest.json", 0)]


def test_the_least_recently_used_shard_goes_first(server, shards, folder, make_jpeg, monkeypatch):
    monkeypatch.setattr(cached_places, "_TOUCH_S", 0.0)
    reader = reader_of(server.url, folder, room_for(shards, 1, 3, 5))
    for number in (1, 3, 5, 1, 3):  # 5 was used least recently
        reader.read(first_id(shards, number))
    reader.read(first_id(shards, 0))
    assert tars(folder) == ["shard-000000.tar", "shard-000001.tar", "shard-000003.tar"]
    reader.read(first_id(shards, 2))  # 1 and 3 are older than 0
    assert "shard-000000.tar" in tars(folder)
    assert "shard-000002.tar" in tars(folder)
    assert reader.read(first_id(shards, 5)) == make_jpeg(first_id(shards, 5))


def test_the_folder_never_holds_more_than_its_bound(server, shards, folder, make_jpeg):
    reader = reader_of(server.url, folder, room_for(shards, 1))
    cache = ShardCache(folder, 10**9)
    for sample_id in random.Random(0).sample(range(103), 60):
        assert reader.read(sample_id) == make_jpeg(sample_id)
        assert cache.used_bytes() <= places_of(reader).cache.max_bytes


def test_a_shard_in_use_is_never_taken(server, shards, folder):
    reader = reader_of(server.url, folder, room_for(shards, 1, 6))
    places = places_of(reader)
    held = places.path(1)
    for number in (0, 2, 4, 6, 0, 2):
        reader.read(first_id(shards, number))
        assert held.exists()
    reader.close()
    places.release(1)
    reader.read(first_id(shards, 5))
    assert not held.exists()


def test_a_shard_held_twice_is_held_until_both_let_go(server, shards, folder):
    places = places_of(reader_of(server.url, folder))
    path = places.path(1)
    places.path(1)
    places.release(1)
    assert not remove_unused(path)
    places.release(1)
    places.release(1)  # once too often is harmless
    assert remove_unused(path)


def test_a_crowded_folder_is_named_after_some_patience(server, shards, folder):
    reader = reader_of(server.url, folder, room_for(shards, 1))
    places = places_of(reader)
    places.path(1)
    with pytest.raises(Failure, match=r"no room for shard-000003.tar: .*data.shards.max_gb"):
        places.bring(3)
    places.release(1)
    assert places.bring(3)


def test_a_crowded_folder_is_waited_for(server, shards, folder):
    places = places_of(reader_of(server.url, folder, room_for(shards, 1)))
    file = hold(places.path(1), shards.index().shards[1].num_bytes)
    places.release(1)
    assert file is not None
    threading.Timer(0.5, unlock, [file]).start()
    assert places.bring(3, patience_s=10)


def test_another_process_may_hold_a_shard_too(server, shards, folder):
    reader = reader_of(server.url, folder, room_for(shards, 1, 6))
    other = cache_user.start(
        server.url, [first_id(shards, 1)], stay=True, folder=str(folder), max_gb=1
    )
    try:
        assert other.stdout and other.stdout.readline() == "open\n" and other.stdout.readline()
        held = next(folder.rglob("shard-000001.tar"))
        assert is_locked(held)
        for number in (0, 4, 6, 2):
            reader.read(first_id(shards, number))
        assert held.exists()
        with pytest.raises(Failure, match="in use"):
            places_of(reader).bring(3)
        other.kill()  # its locks go with it
        other.wait()
        assert places_of(reader).bring(3)
        assert not held.exists()
    finally:
        other.kill()
        other.communicate()


def test_many_processes_share_a_small_folder_and_a_bad_server(server, shards, folder, make_jpeg):
    for file in [shard.file for shard in shards.index().shards]:
        server.faults[file] = [
            Fault(cut=5000),
            Fault(status=503),
            Fault(lie=-700),
            Fault(page=True),
        ]
    lists = [random.Random(n).sample(range(103), 60) for n in range(3)]
    max_gb = room_for(shards, 1, 5, 3)
    others = [
        cache_user.start(
            server.url, ids, folder=str(folder), max_gb=max_gb, retries=8, ahead_steps=0
        )
        for ids in lists
    ]
    cache, seen = ShardCache(folder, 10**9), 0
    while any(other.poll() is None for other in others):
        seen = max(seen, cache.used_bytes())
        time.sleep(0.002)
    for other, ids in zip(others, lists, strict=True):
        out, _ = other.communicate()
        right = hashlib.sha256(b"".join(map(make_jpeg, ids))).hexdigest()
        assert out.splitlines() == ["open", right]
    assert 0 < seen <= max_gb * 1e9


def test_a_killed_process_leaves_nothing_that_harms(server, shards, folder, make_jpeg):
    file = shards.index().shards[1].file
    size = shards.index().shards[1].num_bytes
    server.faults[file] = [Fault(bytes_per_s=size)]
    other = cache_user.start(server.url, [first_id(shards, 1)], folder=str(folder), max_gb=1)
    deadline = time.monotonic() + 60
    while not (found := list(folder.rglob("*.part"))) or found[0].stat().st_size < size / 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    other.kill()
    other.communicate()
    reader = reader_of(server.url, folder)
    assert ShardCache(folder, 10**9).used_bytes() == size  # room for all of it stays taken
    assert reader.read(first_id(shards, 1)) == make_jpeg(first_id(shards, 1))
    assert server.asked[-1][0] == file
    assert server.asked[-1][1] >= size / 4


def test_an_abandoned_part_makes_room(server, shards, folder):
    reader = reader_of(server.url, folder, room_for(shards, 1))
    tar = folder / "gone-0123" / "train" / "shard-000000.tar"
    tar.parent.mkdir(parents=True)
    part_of(tar, shards.index().shards[1].num_bytes).write_bytes(b"x")
    reader.read(first_id(shards, 3))
    assert not list(folder.rglob("*.part"))


def test_a_use_is_noted_beside_the_time_of_writing(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"x")
    os.utime(path, ns=(1, 2))
    touch(path)
    assert path.stat().st_mtime_ns == 2
    assert path.stat().st_atime_ns > 10**18
    touch(tmp_path / "gone.tar")
