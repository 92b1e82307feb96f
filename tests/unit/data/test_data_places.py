"""Settings of where shards are, and shards that are read where they lie."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.index import SplitIndex
from pipeline.data.places import LocalPlaces, PlacesSpec, is_url
from pipeline.data.reader import ShardReader
from pipeline.spec import Misuse


class Recording(LocalPlaces):
    """Local places that remember what was asked of them."""

    keep = 2

    def __init__(self, folder, shards) -> None:
        super().__init__(folder, shards)
        self.held: list[int] = []
        self.most = 0
        self.expected: set[int] = set()

    def path(self, shard: int) -> Path:
        self.held.append(shard)
        self.most = max(self.most, len(self.held))
        return super().path(shard)

    def release(self, shard: int) -> None:
        self.held.remove(shard)

    def expect(self, shards) -> None:
        self.expected.update(shards)


@pytest.fixture
def recording(shards) -> Recording:
    return Recording(shards.folder, shards.index().shards)


@pytest.fixture
def reader(shards, recording) -> ShardReader:
    return ShardReader(SplitIndex(shards.folder, shards.manifest, "train", recording))


def test_a_reader_holds_no_more_shards_than_the_places_allow(reader, recording, make_jpeg):
    for sample_id in [*range(0, 103, 5), 0, 1, 2]:
        assert reader.read(sample_id) == make_jpeg(sample_id)
    assert recording.most == 2
    reader.close()
    assert recording.held == []


def test_a_shard_that_cannot_be_opened_is_released(reader, recording, shards, make_shards):
    lost = make_shards([3, 3])
    (lost.folder / "train" / "shard-000001.tar").unlink()
    places = Recording(lost.folder, lost.index().shards)
    reader = ShardReader(SplitIndex(lost.folder, lost.manifest, "train", places))
    with pytest.raises(RuntimeError, match="No such file"):
        reader.read(4)
    assert places.held == []


def test_samples_that_are_expected_name_their_shards(reader, recording):
    reader.expect(np.array([0, 1, 2, 3, 42, 43, 102]))
    assert recording.expected == {0, 1, 2, 6}
    recording.expected.clear()
    reader.expect(np.array([], int))
    assert recording.expected == set()


def test_a_reader_asks_the_places_where_a_shard_is(shards, recording, make_jpeg, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "train").mkdir(parents=True)
    for tar in (shards.folder / "train").glob("*.tar"):
        (elsewhere / "train" / tar.name).symlink_to(tar)
    places = LocalPlaces(elsewhere, shards.index().shards)
    index = SplitIndex(shards.folder, shards.manifest, "train", places)
    (elsewhere / "train" / "shard-000003.tar").unlink()
    assert ShardReader(index).read(0) == make_jpeg(0)
    assert index.key(1) == "s00001"
    with pytest.raises(RuntimeError, match=f"{elsewhere}/train/shard-000003.tar"):
        ShardReader(index).read(51)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/imagenet", False),
        (Path("https://x"), False),
        ("/data/with:colon", False),
        ("http://host:8000/imagenet", True),
        ("https://host/a/b", True),
        ("s3://bucket/imagenet", True),
        ("memory://imagenet", True),
    ],
)
def test_urls_are_told_from_folders(path, expected):
    assert is_url(path) is expected


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("pipe://cat /etc/passwd", "URLs of shards begin with one of http"),
        ("ftp://host/x", "URLs of shards begin with one of http"),
        ("zip://x.tar::https://host/x.zip", "URLs of shards begin with"),
        ("simplecache::https://host/x", "URLs of shards begin with"),
        ("https://host/x::y", "URLs of shards begin with"),
        ("https://me:hunter2@host/x", "would be recorded"),
        ("https://me@host/x", "would be recorded"),
        ("https://host/x?token=hunter2", "would be recorded"),
        ("https://host/x#hunter2", "would be recorded"),
    ],
)
def test_urls_that_are_dangerous_or_hold_secrets_are_refused(path, told):
    with pytest.raises(Misuse, match=told) as error:
        is_url(path)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kind": "stage"}, "kind stage needs `folder`"),
        ({"kind": "cache"}, "kind cache needs `folder`"),
        ({"kind": "copy"}, "kind"),
        ({"max_gb": 0}, "max_gb"),
        ({"connections": 0}, "connections"),
        ({"retries": -1}, "retries"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"where": "/tmp"}, "'where' is unknown"),
    ],
)
def test_wrong_settings_are_named(values, told):
    with pytest.raises(Misuse, match=told):
        PlacesSpec.parse(values, "test")
