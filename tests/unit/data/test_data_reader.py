"""The reader: right bytes, and for everything that may be wrong an error with file and key."""

import os
import pickle
import resource
from pathlib import Path

import pytest

from pipeline.data.reader import BrokenSample, ShardReader
from pipeline.spec import Failure


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
    os.utime(tar, ns=(0, 0))  # as a disk loses it
    reader = ShardReader(made.index())
    assert reader.read(5)
    with pytest.raises(BrokenSample) as error:
        reader.read(6)
    text = str(error.value)
    assert text.startswith(f"{tar}: sample 's00006' (row 2): crc32c is ")
    assert f"; run `python -m data_prep verify {made.folder}`, then restore or build" in text


def test_a_truncated_shard_is_named(make_shards):
    made = make_shards([6])
    tar = made.folder / "train" / "shard-000000.tar"
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes()[: size // 2])
    reader = ShardReader(made.index())
    assert reader.read(0)
    told = (
        rf"00\.tar: sample with id 5 \(row 5\): the shard ends {size - size // 2:,} bytes too early"
    )
    with pytest.raises(BrokenSample, match=told):
        reader.read(5)


def test_a_sample_beyond_a_shard_of_the_right_size_is_named(make_shards):
    made = make_shards([6])
    tar, index = made.folder / "train" / "shard-000000.tar", made.index()
    index.shards = (index.shards[0].model_copy(update={"num_bytes": 5000}),)
    os.truncate(tar, 5000)
    with pytest.raises(BrokenSample, match=r"sample with id 5 .*: it lies beyond the end of the"):
        ShardReader(index).read(5)


def test_a_missing_shard_is_named(make_shards):
    made = make_shards([2, 2])
    (made.folder / "train" / "shard-000001.tar").unlink()
    with pytest.raises(BrokenSample, match=r"shard-000001.tar: .*No such file"):
        ShardReader(made.index()).read(3)


def test_a_page_of_html_instead_of_a_shard_is_found(make_shards):
    made = make_shards([2])
    tar = made.folder / "train" / "shard-000000.tar"
    size = tar.stat().st_size
    tar.write_bytes(b"<html>404</html>".ljust(size, b" "))
    with pytest.raises(BrokenSample, match=r"sample with id 1 .*crc32c.*; it is no tar: it begins"):
        ShardReader(made.index()).read(1)
    tar.write_bytes(b"<html>404</html>")
    told = rf"ends {size - 16:,} bytes too early; it is no tar: it begins with b'<html>404</html>'"
    with pytest.raises(BrokenSample, match=told) as error:
        ShardReader(made.index()).read(1)
    assert "index it again" not in str(error.value)


def test_an_empty_shard_is_told_as_such(make_shards):
    made = make_shards([2])
    tar = made.folder / "train" / "shard-000000.tar"
    size = tar.stat().st_size
    tar.write_bytes(b"")
    with pytest.raises(BrokenSample, match=rf"ends {size:,} bytes too early; it is empty; "):
        ShardReader(made.index()).read(1)


@pytest.mark.parametrize("same_size", [True, False])
def test_the_key_of_another_tar_is_not_given_as_the_samples_name(make_shards, same_size):
    """Its size or its mtime tells that it is another one."""
    made = make_shards([4, 4] if same_size else [4, 2])
    tars = sorted((made.folder / "train").glob("*.tar"))
    tars[0].write_bytes(tars[1].read_bytes())
    if not same_size:
        os.utime(tars[0], ns=(0, 0))
    told = r"sample with id 0 \(row 0, which the tar now calls 's00004'\): crc32c"
    with pytest.raises(BrokenSample, match=told):
        ShardReader(made.index()).read(0)


def _open_files(folder: Path) -> int:
    """Return how many files below `folder` this process has open."""
    targets = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
    return sum(target.startswith(f"{folder}/") for target in targets)


@pytest.fixture
def two(make_shards):
    """Two shards of four samples, and the second tar."""
    made = make_shards([4, 4])
    return made, made.folder / "train" / "shard-000001.tar"


def test_a_shard_that_is_written_anew_under_a_running_job_is_named(two, make_shards, make_jpeg):
    made, tar = two
    reader = ShardReader(made.index())
    assert reader.read(4) == make_jpeg(4)
    raw = bytearray(tar.read_bytes())
    offset = int(made.index().entry(5)["offset"])
    raw[offset : offset + 200] = bytes(200)
    os.utime(tar, ns=(0, 0))
    tar.write_bytes(raw)
    with pytest.raises(BrokenSample, match=r"crc32c .*changed while this job had it open"):
        reader.read(5)


def test_a_shard_that_is_replaced_as_a_whole_is_still_read_as_it_was(two, make_jpeg):
    made, tar = two
    reader = ShardReader(made.index())
    assert reader.read(4) == make_jpeg(4)
    other = tar.with_suffix(".new")
    other.write_bytes(bytes(tar.stat().st_size))
    other.replace(tar)
    assert reader.read(5) == make_jpeg(5)


def test_a_shard_that_is_cut_under_a_running_job_is_named(two, make_jpeg):
    made, tar = two
    reader = ShardReader(made.index())
    assert reader.read(4) == make_jpeg(4)
    size = tar.stat().st_size
    os.truncate(tar, 1000)
    told = (
        rf"ends {size - 1000:,} bytes too early; it has 1,000 bytes, the manifest says {size:,}; "
        "it was changed while"
    )
    with pytest.raises(BrokenSample, match=told):
        reader.read(7)


def test_an_index_older_than_its_tar_is_named(two, make_tar, make_jpeg):
    made, tar = two
    samples = [{"key": b"s%05d" % n, "jpg": make_jpeg(n + 9), "cls": b"0"} for n in range(4, 8)]
    make_tar(tar, samples)
    index = tar.with_name("shard-000001.idx.npy")
    os.utime(index, ns=(0, 0))
    with pytest.raises(BrokenSample, match="changed after its index was written: "):
        ShardReader(made.index()).read(6)
    os.utime(index)
    with pytest.raises(BrokenSample) as error:
        ShardReader(made.index()).read(6)
    assert "after its index" not in str(error.value)


def test_a_shard_that_is_restored_is_found_by_the_next_read(two, make_jpeg):
    made, tar = two
    reader = ShardReader(made.index())
    assert reader.read(4) == make_jpeg(4)
    good = tar.read_bytes()
    tar.write_bytes(bytes(len(good)))
    with pytest.raises(BrokenSample):
        reader.read(5)
    tar.unlink()
    with pytest.raises(BrokenSample, match="No such file"):
        reader.read(5)
    tar.write_bytes(good)
    assert reader.read(5) == make_jpeg(5)


def test_a_disk_that_returns_errors_is_named(two):
    made, tar = two
    tar.unlink()
    tar.symlink_to("/proc/self/mem")  # reading its first bytes is an I/O error
    told = r"shard-000001.tar: sample with id 5 .*Input/output error\): the disk or the file server"
    with pytest.raises(BrokenSample, match=told):
        ShardReader(made.index()).read(5)


def test_too_many_open_files_are_no_broken_sample(shards):
    reader = ShardReader(shards.index())
    for sample_id in (0, 50):
        reader.index.entry(sample_id)
    reader.read(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(Failure, match="Too many open files.*ulimit -n") as error:
            reader.read(50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not isinstance(error.value, BrokenSample)
    assert reader.read(50)


def test_only_tars_stay_open_and_only_until_the_end(make_shards):
    made = make_shards([3, 4, 5])
    reader = ShardReader(made.index())
    for sample_id in range(12):
        reader.read(sample_id)
    assert _open_files(made.folder) == 3  # no indexes
    reader.close()
    assert _open_files(made.folder) == 0
