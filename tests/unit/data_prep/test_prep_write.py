"""Tars as webdataset writes them, and what webdataset and timm find in them."""

import io
import json
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import data_prep.write as write_module
from data_prep.tarwrite import MAX_NAME_BYTES, TarWriter, header_of
from data_prep.write import index_entries, key_of
from pipeline.data.index import ENTRY, SplitIndex
from pipeline.data.manifest import Manifest

MakeTree = Callable[..., Path]
RunBuild = Callable[..., Manifest]
Encode = Callable[..., bytes]

NAMES = st.text("abcXYZ019_-./", min_size=1, max_size=MAX_NAME_BYTES)
SIZES = st.one_of(st.integers(0, 3000), st.sampled_from([0, 1, 511, 512, 513, 10_240, 8 * 1024]))


def _with_tarfile(members: list[tuple[str, bytes]]) -> bytes:
    """Write members as webdataset's writer does: tarfile's ustar stream, no owner, no time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o444, 0
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(NAMES, SIZES), max_size=8))
def test_tars_are_those_of_tarfile_byte_for_byte(members: list[tuple[str, int]]) -> None:
    content = [(name, bytes([n]) * size) for n, (name, size) in enumerate(members)]
    buffer = io.BytesIO()
    writer = TarWriter(buffer)
    places = [writer.add(name, data) for name, data in content]
    digest = writer.finish()
    raw = buffer.getvalue()
    assert raw == _with_tarfile(content)
    assert digest == sha256(raw).hexdigest() and writer.num_bytes == len(raw)
    for (_, data), place in zip(content, places, strict=True):
        assert raw[place.offset : place.offset + place.size] == data
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert [info.offset for info in tar] == [place.header for place in places]


def test_tars_are_those_of_webdataset_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_SECURE", "1")
    from webdataset.writer import TarWriter as Theirs

    theirs, ours = io.BytesIO(), io.BytesIO()
    with Theirs(theirs, user="", group="", mtime=0, encoder=False) as writer:
        writer.write({"__key__": "00000000-cat", "jpg": b"abc", "cls": b"3", "json": b"{}"})
    writer = TarWriter(ours)
    for suffix, data in (("cls", b"3"), ("jpg", b"abc"), ("json", b"{}")):
        writer.add(f"00000000-cat.{suffix}", data)
    writer.finish()
    assert ours.getvalue() == theirs.getvalue()


@pytest.mark.parametrize(("name", "size"), [("", 1), ("x" * 101, 1), ("x", 8 << 30)])
def test_what_no_plain_header_can_say_is_no_member(name: str, size: int) -> None:
    with pytest.raises(AssertionError):
        header_of(name, size)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cat/0001.jpg", "00000007-cat-0001"),
        ("train.tar/n01/n01_5.JPEG", "00000007-train-tar-n01-n01_5"),
        ("no-suffix", "00000007-no-suffix"),
        ("katzen/süß\udcff\n.jpg", "00000007-katzen-s-udcff-x0a"),
        ("../../etc/passwd.jpg", "00000007-etc-passwd"),
        ("a" * 300 + ".jpg", "00000007-" + "a" * 64),
    ],
)
def test_keys_are_plain_and_tell_the_file(name: str, key: str) -> None:
    assert key_of(7, name) == key
    assert len(f"{key_of(99_999_999, name)}.json") <= MAX_NAME_BYTES


def test_index_entries_say_where_images_and_labels_lie() -> None:
    buffer = io.BytesIO()
    writer = TarWriter(buffer)
    places = [writer.add(f"{n}.jpg", b"x" * n) for n in range(3)]
    crc32c, sizes = np.arange(3, dtype=np.uint32), np.array([[4, 5], [6, 7], [8, 9]])
    entries = index_entries(places, [1, 3, 1], crc32c, sizes)
    assert entries.dtype == ENTRY
    assert entries["label_start"].tolist() == [0, 1, 4]
    assert entries["offset"].tolist() == [512, 1024, 2048]
    assert entries["header"].tolist() == [0, 512, 1536]
    assert entries["height"].tolist() == [5, 7, 9]


@pytest.fixture
def built(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Seven images, of which one stands for a cat and for a dog, in two shards."""
    import webdataset

    # In its secure mode webdataset opens no local file by name.
    monkeypatch.setattr(webdataset.utils, "enforce_security", False)
    tree = make_tree({"cat": 4, "dog": 4})
    (tree / "dog/0000.jpg").write_bytes((tree / "cat/0000.jpg").read_bytes())
    run_build(tree, duplicates="merge", shard_samples=4, holdouts={"eval": {"count": 1}})
    return tmp_path / "out"


def test_webdataset_reads_what_was_built(built: Path) -> None:
    from webdataset.compat import WebDataset

    from pipeline.data.manifest import load_manifest

    manifest, several = load_manifest(built), []
    for name, split in manifest.splits.items():
        urls = [str(built / shard.file) for shard in split.shards]
        found = list(WebDataset(urls, shardshuffle=False, empty_check=False))
        index = SplitIndex(built, manifest, name)
        assert len(found) == len(index) == {"train": 5, "eval": 2}[name]
        for sample_id, sample in enumerate(found):
            assert sample["__key__"] == index.key(sample_id)
            assert int(sample["cls"]) == index.labels(sample_id)[0]
            assert Image.open(io.BytesIO(sample["jpg"])).size == (16, 12)
            several += [json.loads(sample["json"])] if "json" in sample else []
    assert several == [{"labels": [0, 1], "classes": ["cat", "dog"]}]
    counts = [np.array(split.class_counts) for split in manifest.splits.values()]
    assert np.array_equal(sum(counts), [4, 4])


def test_timm_finds_the_splits_by_itself(built: Path) -> None:
    readers = pytest.importorskip("timm.data.readers.reader_wds")
    train = readers.ReaderWds(root=str(built), name="", split="train")
    held = readers.ReaderWds(root=str(built), name="", split="eval")
    assert (len(train), len(held)) == (5, 2)
    classes = Counter(int(target) for reader in (train, held) for _, target in reader)
    assert classes == Counter({0: 4, 1: 3})
    assert train.split_info.filenames == ("train/shard-000000.tar", "train/shard-000001.tar")
    assert train.split_info.shard_lengths == (4, 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 250))
def test_windows_hold_all_images_in_order_and_no_more_than_they_may(
    sizes: list[int], limit: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_module, "WINDOW_BYTES", limit)
        found = list(write_module.windows(np.array(sizes, np.uint32)))
    assert [n for start, end in found for n in range(start, end)] == list(range(len(sizes)))
    for start, end in found:
        assert end == start + 1 or sum(sizes[start:end]) <= limit
        assert end == len(sizes) or sum(sizes[start : end + 1]) > limit, "no smaller than need be"


def test_a_large_shard_takes_a_window_of_memory(
    tmp_path: Path,
    make_tree: MakeTree,
    run_build: RunBuild,
    digests: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And its bytes are those that it has when it is read whole."""
    tree = make_tree({"cat": 6, "dog": 6})
    for number, path in enumerate(sorted(tree.rglob("*.jpg"))):
        comment = b"".join(b"\xff\xfe\xff\xff" + bytes([number]) * 65_533 for _ in range(8))
        path.write_bytes(path.read_bytes()[:2] + comment + path.read_bytes()[2:])
    run_build(tree, "whole")
    monkeypatch.setattr(write_module, "WINDOW_BYTES", 1_100_000)
    tracemalloc.start()
    run_build(tree, "windows")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (tar,) = (tmp_path / "windows").glob("train/*.tar")
    assert tar.stat().st_size > 6_000_000 and peak < 4_000_000
    assert digests(tmp_path / "windows") == digests(tmp_path / "whole")
