"""Shards through a cache: wrong copies, lost shards, dead servers, forks, and what is expected."""

import os
import pickle
import time

import numpy as np
import pytest

from pipeline.data.ahead import Ahead
from pipeline.data.cache import is_locked
from pipeline.data.places import ShardGone
from pipeline.data.reader import BrokenSample
from pipeline.spec import Failure
from tests.unit.data.cached_shards import places_of, reader_of, tars
from tests.unit.data.faulty_server import Fault, serving

pytestmark = pytest.mark.usefixtures("short_pauses")


def test_a_copy_with_wrong_bytes_comes_again(server, shards, folder, make_jpeg):
    reader = reader_of(server.url, folder)
    places_of(reader).bring(1)
    tar = next(folder.rglob("shard-000001.tar"))
    raw = bytearray(tar.read_bytes())
    raw[int(reader.index.entry(5)["offset"]) + 100] ^= 1
    tar.write_bytes(raw)
    assert reader.read(5) == make_jpeg(5)
    assert server.sent["train/shard-000001.tar"] == 2 * len(raw)


def test_a_copy_that_was_cut_comes_again(server, shards, folder, make_jpeg):
    reader = reader_of(server.url, folder)
    places_of(reader).bring(1)
    os.truncate(next(folder.rglob("shard-000001.tar")), 700)
    assert reader.read(5) == make_jpeg(5)


def test_wrong_bytes_that_come_again_are_a_broken_sample(make_shards, folder):
    made = make_shards([3, 5])
    wrong = made.index().shards[1].model_copy(update={"sha256": "0" * 64})
    with serving(made.folder) as server:
        reader = reader_of(server.url, folder)
        shard = places_of(reader)
        shard.shards = (shard.shards[0], wrong)
        assert reader.read(0)
        for sample_id in (3, 4):
            with pytest.raises(BrokenSample, match=rf"{server.url}/train/shard-000001.tar.*sha256"):
                reader.read(sample_id)
    assert [file for file, _ in server.asked].count("train/shard-000001.tar") == 2


def test_a_missing_shard_is_asked_for_once_and_names_its_samples(make_shards, folder, make_jpeg):
    made = make_shards([3, 5, 2])
    (made.folder / "train" / "shard-000001.tar").unlink()
    with serving(made.folder) as server:
        reader = reader_of(server.url, folder)
        for sample_id in range(3, 8):
            with pytest.raises(BrokenSample, match=rf"id {sample_id} .*answers 404"):
                reader.read(sample_id)
        assert reader.read(9) == make_jpeg(9)
    assert [file for file, _ in server.asked].count("train/shard-000001.tar") == 1


def test_a_missing_shard_is_told_with_its_url_and_what_to_do_at_its_source(make_shards, folder):
    made = make_shards([3, 5, 2])
    (made.folder / "train" / "shard-000001.tar").unlink()
    with serving(made.folder) as server:
        reader = reader_of(server.url, folder)
        with pytest.raises(BrokenSample) as error:
            reader.read(3)
    text = str(error.value)
    assert text.startswith(f"{server.url}/train/shard-000001.tar: sample with id 3 (row 0): the ")
    assert text.count(server.url) == 1 and "copied" not in text and str(folder) not in text
    assert "see that `data.path` is right, then restore this shard at its source" in text


def test_a_copy_is_named_where_there_is_one(make_shards, folder):
    made = make_shards([3])
    reader = reader_of(str(made.folder), folder, kind="cache")
    tar = made.folder / "train" / "shard-000000.tar"
    assert reader.read(0)
    copy = next(folder.rglob("*.tar"))
    assert str(reader.broken(0, "is odd")) == (
        f"{tar} (copied to {copy}): sample 's00000' (row 0): is odd; run `python -m data_prep "
        f"verify {made.folder}`, then restore or build this shard again"
    )


def test_a_copy_is_newer_than_its_index_and_that_says_nothing(server, folder):
    reader = reader_of(server.url, folder)
    offset = int(reader.index.entry(5)["offset"])

    def damage() -> None:
        with next(folder.rglob("shard-000001.tar")).open("r+b") as file:
            file.seek(offset)
            file.write(bytes(50))

    places_of(reader).bring(1)
    damage()
    assert reader.read(5)
    reader.close()
    damage()  # this time it is not brought again
    with pytest.raises(BrokenSample, match=r"sample 's00005' \(row 2\): crc32c") as error:
        reader.read(5)
    assert "its index was written" not in str(error.value)


def test_a_dead_server_is_no_broken_sample(shards, folder):
    with serving(shards.folder) as server:
        reader = reader_of(server.url, folder)
    with pytest.raises(Failure, match=f"{server.url}/train/shard-000000.tar") as error:
        reader.read(0)
    assert not isinstance(error.value, BrokenSample | ShardGone)


def test_a_cache_wants_to_know_what_comes(server, folder):
    assert places_of(reader_of(server.url, folder, ahead_steps=7)).ahead_steps == 7


def test_expected_shards_come_in_the_background(server, shards, folder):
    reader = reader_of(server.url, folder, connections=2)
    reader.expect(np.arange(103))
    deadline = time.monotonic() + 20
    while len(tars(folder)) < 7:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.asked.clear()
    for sample_id in range(0, 103, 4):
        reader.read(sample_id)
    reader.expect(np.arange(103))
    assert server.asked == []


def test_expected_shards_that_cannot_come_are_told_when_they_are_read(server, shards, folder):
    server.always("train/shard-000001.tar", Fault(status=404))
    reader = reader_of(server.url, folder, connections=1)
    reader.expect(np.array([5, 102]))
    deadline = time.monotonic() + 20
    while len(tars(folder)) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(BrokenSample, match="404"):
        reader.read(5)
    assert [file for file, _ in server.asked].count("train/shard-000001.tar") == 1


def test_expecting_goes_on_in_a_forked_process():
    brought: list[int] = []
    ahead = Ahead(lambda shard: brought.append(shard), threads=2)
    ahead.want([1, 2, 2])
    child = os.fork()
    if child == 0:
        brought.clear()
        ahead.want([3])
        deadline = time.monotonic() + 10
        while 3 not in brought and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0 if 3 in brought else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    deadline = time.monotonic() + 10
    while len(brought) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(brought) == {1, 2}


def test_a_reader_travels_without_its_locks(server, folder, make_jpeg):
    reader = reader_of(server.url, folder)
    reader.read(50)
    path = next(folder.rglob("shard-000003.tar"))
    copy = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert not is_locked(path)
    assert copy.read(50) == make_jpeg(50)
    assert is_locked(path)
    copy.close()


def test_a_forked_reader_takes_locks_of_its_own(server, folder, make_jpeg):
    reader = reader_of(server.url, folder)
    reader.read(50)
    child = os.fork()
    if child == 0:
        right = [reader.read(n) for n in (50, 0, 51)] == [make_jpeg(n) for n in (50, 0, 51)]
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_locked(next(folder.rglob("shard-000003.tar")))
    assert reader.read(52) == make_jpeg(52)
    reader.close()
