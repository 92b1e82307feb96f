"""The index: global sample ids over shards, keys from tar headers, and damage that is named."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import index as index_module
from pipeline.data import index_files
from pipeline.data.index import ENTRY, SplitIndex, read_index, read_key, read_labels, split_name
from pipeline.data.labels import LabelSpace
from pipeline.data.manifest import Manifest, Shard, Split
from pipeline.spec import Failure, Misuse

LONG = "folder/" + "k" * 150


def _write_shard(folder: Path, file: str, keys: list[str], labels: list[list[int]]) -> Shard:
    """Write a shard whose images are the bytes of their keys."""
    tar_path = folder / file
    tar_path.parent.mkdir(exist_ok=True)
    entries = np.zeros(len(keys), ENTRY)
    with tarfile.open(tar_path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key in keys:
            info = tarfile.TarInfo(key + ".jpg")
            info.size = len(key)
            tar.addfile(info, io.BytesIO(key.encode()))
    start = 0
    with tarfile.open(tar_path) as tar:
        for row, info in enumerate(tar):
            entry = entries[row]
            entry["offset"], entry["header"] = info.offset_data, info.offset
            entry["size"], entry["label_start"] = info.size, start
            entry["num_labels"] = len(labels[row])
            start += len(labels[row])
    stem = tar_path.with_suffix("")
    flat = np.array([label for its in labels for label in its], "<i4")
    np.save(f"{stem}.idx.npy", entries)
    np.save(f"{stem}.lab.npy", flat)
    digests = [
        hashlib.sha256(Path(f"{stem}{end}").read_bytes()).hexdigest()
        for end in (".tar", ".idx.npy", ".lab.npy")
    ]
    return Shard(
        file=file,
        num_samples=len(keys),
        num_bytes=tar_path.stat().st_size,
        sha256=digests[0],
        index_sha256=digests[1],
        labels_sha256=digests[2],
    )


@pytest.fixture
def index(tmp_path: Path) -> SplitIndex:
    shards = (
        _write_shard(tmp_path, "train/a.tar", ["k0", LONG], [[2], [0, 1]]),
        _write_shard(tmp_path, "train/b.tar", ["k2"], [[1]]),
        _write_shard(tmp_path, "train/c.tar", ["k3", "k4", "k5"], [[0], [0], [2]]),
    )
    manifest = Manifest(
        name="x",
        tool="test",
        labels=LabelSpace(name="x", classes=("a", "b", "c")),
        splits={"train": Split(shards=shards, class_counts=(3, 2, 2))},
    )
    return SplitIndex(tmp_path, manifest, "train")


def test_ids_count_through_the_shards(index: SplitIndex) -> None:
    assert len(index) == 6
    assert [index.locate(i) for i in range(6)] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]
    assert [index.labels(i) for i in range(6)] == [(2,), (0, 1), (1,), (0,), (0,), (2,)]
    assert [index.key(i) for i in range(6)] == ["k0", LONG, "k2", "k3", "k4", "k5"]


def test_entries_point_at_the_bytes(index: SplitIndex) -> None:
    for sample_id in range(len(index)):
        entry = index.entry(sample_id)
        data = index.tar(index.locate(sample_id)[0]).read_bytes()
        start = int(entry["offset"])
        assert data[start : start + int(entry["size"])].decode() == index.key(sample_id)


@pytest.mark.parametrize("sample_id", [-1, 6])
def test_an_id_outside_is_an_error(index: SplitIndex, sample_id: int) -> None:
    with pytest.raises(IndexError, match="with 6 samples"):
        index.locate(sample_id)


def test_it_can_be_sent_to_a_worker(index: SplitIndex) -> None:
    assert index.labels(1) == (0, 1)  # opens maps, which must not be sent
    data = pickle.dumps(index)
    assert len(data) < 4000
    assert pickle.loads(data).labels(1) == (0, 1)


def test_a_changed_index_is_named(index: SplitIndex) -> None:
    path = index.folder / "train/b.idx.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert index.labels(0) == (2,)
    with pytest.raises(Misuse, match=r"b\.idx\.npy: its sha256 differs from the manifest's"):
        index.labels(2)
    path.unlink()
    with pytest.raises(Misuse, match=r"b\.idx\.npy: cannot be read \(No such file"):
        index.labels(2)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(Misuse, match="holds float64, not index entries"):
        read_index(path)
    with pytest.raises(Misuse, match="holds float64, not int32 labels"):
        read_labels(path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(Misuse, match="cannot be read as an index"):
        read_index(path)
    path.write_bytes(b"")
    with pytest.raises(Misuse, match="cannot be read as an index"):
        read_index(path)


def test_names_split_like_in_webdataset() -> None:
    assert split_name("a/b.c/k0.seg.png") == ("a/b.c/k0", "seg.png")
    assert split_name("k0.JPG") == ("k0", "jpg")


def test_keys_of_long_names_are_read(index: SplitIndex) -> None:
    assert read_key(index.tar(0), int(index.entry(1)["header"])) == LONG


def _open_files(folder: Path) -> int:
    """Return how many files below `folder` this process has open."""
    targets = (str(link.resolve()) for link in Path("/proc/self/fd").iterdir())
    return sum(target.startswith(f"{folder}/") for target in targets)


def test_no_files_stay_open(index: SplitIndex) -> None:
    assert [index.labels(i) for i in range(6)] == [(2,), (0, 1), (1,), (0,), (0,), (2,)]
    assert _open_files(index.folder) == 0


def test_memory_is_bounded_by_forgetting_what_was_used_least(
    index: SplitIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sum(array.nbytes for array in index.arrays(2))
    monkeypatch.setattr(index_module, "HELD_BYTES", 2 * one)
    for sample_id in (0, 2, 0, 5, 0):
        index.labels(sample_id)
    assert set(index._open) == {0, 2}  # 1 was used least recently
    assert index._held_bytes == sum(a.nbytes for pair in index._open.values() for a in pair)
    assert index.labels(2) == (1,)
    monkeypatch.setattr(index_module, "HELD_BYTES", 0)
    assert [index.labels(i) for i in (0, 5, 2)] == [(2,), (2,), (1,)]
    assert len(index._open) == 1


def test_large_indexes_are_mapped(index: SplitIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "WHOLE_BYTES", 10)
    assert isinstance(index.arrays(0)[0], np.memmap)
    assert [index.labels(i) for i in range(6)] == [(2,), (0, 1), (1,), (0,), (0,), (2,)]
    assert index._held_bytes == 0
    path = index.folder / "train/b.idx.npy"
    path.write_bytes(path.read_bytes() + b"x")
    fresh: SplitIndex = pickle.loads(pickle.dumps(index))
    with pytest.raises(Misuse, match=r"b\.idx\.npy: its sha256 differs"):
        fresh.labels(2)


def test_an_index_that_changes_under_a_running_job_is_named(
    index: SplitIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "HELD_BYTES", 0)
    assert index.labels(2) == (1,)
    assert index.labels(0) == (2,)
    path = index.folder / "train/b.lab.npy"
    np.save(path, np.array([0], "<i4"))
    with pytest.raises(Misuse, match=r"b\.lab\.npy: changed while this job ran"):
        index.labels(2)


def test_a_disk_that_returns_errors_is_no_misuse(index: SplitIndex) -> None:
    path = index.folder / "train/b.idx.npy"
    path.unlink()
    path.symlink_to("/proc/self/mem")  # reading its first bytes is an I/O error
    with pytest.raises(
        Failure, match=r"b\.idx\.npy: cannot be read \(Input/output error\); the disk"
    ):
        index.labels(2)
    assert index.labels(0) == (2,)


def test_an_index_with_too_few_entries_is_named(index: SplitIndex) -> None:
    shards = list(index.shards)
    shards[1] = shards[1].model_copy(update={"num_samples": 2})
    index.shards = tuple(shards)
    with pytest.raises(Misuse, match=r"b\.idx\.npy: holds 1 entries, the manifest says 2"):
        index.arrays(1)
