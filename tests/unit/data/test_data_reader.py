"""The reader: right bytes, and for everything that may be wrong an error with file and key."""

import pickle

import pytest

from pipeline.data.reader import BrokenSample, ShardReader


def test_reads_the_bytes_that_were_written(shards, make_jpeg):
    reader = ShardReader(shards.index())
    for sample_id in (0, 2, 3, 42, 70, 102):
        assert reader.read(sample_id) == make_jpeg(sample_id)


def test_few_open_files_are_enough(shards, make_jpeg):
    reader = ShardReader(shards.index(), max_open=2)
    for sample_id in [*range(0, 103, 7), 1, 102]:
        assert reader.read(sample_id) == make_jpeg(sample_id)
    assert len(reader._files) == 2
    reader.close()
    assert not reader._files


def test_travels_to_another_process_without_its_open_files(shards, make_jpeg):
    reader = ShardReader(shards.index())
    reader.read(50)
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._files
    assert copy.read(50) == make_jpeg(50)


def test_an_id_outside_the_split_is_an_error(shards):
    with pytest.raises(IndexError, match="103"):
        ShardReader(shards.index()).read(103)


def test_a_single_flipped_bit_is_found_and_named(make_shards):
    made = make_shards([4, 4])
    tar = made.folder / "train" / "shard-000001.tar"
    offset = int(made.index().entry(6)["offset"]) + 300
    raw = bytearray(tar.read_bytes())
    raw[offset] ^= 4
    tar.write_bytes(raw)
    reader = ShardReader(made.index())
    assert reader.read(5)
    with pytest.raises(BrokenSample) as error:
        reader.read(6)
    for word in ("shard-000001.tar", "'s00006'", "crc32c", "python -m data_prep verify"):
        assert word in str(error.value)


def test_a_truncated_shard_is_named(make_shards):
    made = make_shards([6])
    tar = made.folder / "train" / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    reader = ShardReader(made.index())
    assert reader.read(0)
    with pytest.raises(BrokenSample, match=r"shard-000000.tar: sample with id 5 .*truncated"):
        reader.read(5)


def test_a_missing_shard_is_named(make_shards):
    made = make_shards([2, 2])
    (made.folder / "train" / "shard-000001.tar").unlink()
    with pytest.raises(BrokenSample, match=r"shard-000001.tar: .*No such file"):
        ShardReader(made.index()).read(3)


def test_a_page_of_html_instead_of_a_shard_is_found(make_shards):
    made = make_shards([2])
    tar = made.folder / "train" / "shard-000000.tar"
    tar.write_bytes(b"<html>404</html>".ljust(tar.stat().st_size, b" "))
    with pytest.raises(BrokenSample, match=r"shard-000000.tar: sample with id 1 .*crc32c"):
        ShardReader(made.index()).read(1)
