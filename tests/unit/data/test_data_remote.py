"""Files from a server that is slow, drops connections and lies: right in the end, or named."""

import time
from importlib.util import find_spec

import numpy as np
import pytest

from pipeline.data import fetch
from pipeline.data.fetch import fetch_file
from pipeline.data.places import PlacesSpec, ShardGone
from pipeline.data.remote import Dropped, HttpSource, StoreSource, source_of
from pipeline.spec import Failure, Misuse
from tests.unit.data.faulty_server import Fault
from tests.unit.data.one_file import FAST, FILE, SIZE, bring, expected, leftovers, starts

pytestmark = pytest.mark.usefixtures("short_pauses")


def test_a_file_comes_whole_in_one_request(web, target, content):
    bring(web, target, content)
    assert target.read_bytes() == content
    assert starts(web) == [0]
    assert leftovers(target) == ["a.tar"]


def test_a_file_that_is_there_is_not_asked_for_again(web, target, content):
    bring(web, target, content)
    bring(web, target, content)
    assert len(web.asked) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(web, target, content):
    web.faults[FILE] = [Fault(cut=1_000_000), Fault(cut=900_000), Fault(cut=0)]
    bring(web, target, content)
    assert target.read_bytes() == content
    assert len(web.asked) == 4
    assert starts(web) == sorted(starts(web))
    assert starts(web)[1] > 0  # what came before the break is kept
    assert web.sent[FILE] < 1.5 * SIZE


def test_any_number_of_breaks_is_survived_while_bytes_come(web, target):
    content = np.random.default_rng(1).bytes(16 << 20)
    (web.folder / FILE).write_bytes(content)
    web.faults[FILE] = [Fault(cut=2_200_000) for _ in range(7)]
    bring(web, target, content, PlacesSpec(retries=0, timeout_s=5))
    assert target.read_bytes() == content
    assert len(web.asked) == 8


def test_a_server_that_ignores_ranges_begins_anew(web, target, content):
    web.faults[FILE] = [Fault(cut=1_000_000), Fault(no_ranges=True)]
    bring(web, target, content)
    assert target.read_bytes() == content


def test_a_range_that_is_not_the_one_asked_for_is_not_used(web, target, content):
    web.faults[FILE] = [Fault(cut=1_000_000), Fault(shift=7)]
    bring(web, target, content)
    assert target.read_bytes() == content
    assert starts(web)[-1] == 0


@pytest.mark.parametrize("lie", [-700_000, 700_000, -SIZE + 1])
def test_a_wrong_content_length_does_no_harm(web, target, content, lie):
    web.faults[FILE] = [Fault(lie=lie)]
    bring(web, target, content)
    assert target.read_bytes() == content


def test_a_server_that_always_lies_about_the_length_is_named(web, target, content):
    web.always(FILE, Fault(lie=-SIZE + 10))
    with pytest.raises(ShardGone, match=rf"{web.url}/{FILE}: .*"):
        bring(web, target, content)
    assert not target.exists()


def test_a_server_that_always_promises_more_is_named(web, target, content):
    web.always(FILE, Fault(cut=0, lie=10))
    with pytest.raises(Failure, match=rf"{web.url}/{FILE}: .*tries without progress: 4"):
        bring(web, target, content)
    assert len(web.asked) == 4


def test_a_slow_server_is_waited_for(web, target, content):
    web.faults[FILE] = [Fault(bytes_per_s=4_000_000)]
    bring(web, target, content, PlacesSpec(retries=0, timeout_s=0.4))
    assert target.read_bytes() == content


def test_a_server_that_stands_still_is_left_and_asked_again(web, target, content):
    web.faults[FILE] = [Fault(cut=2_000_000, stall_s=20)]
    started = time.monotonic()
    bring(web, target, content, PlacesSpec(retries=0, timeout_s=0.3))
    assert target.read_bytes() == content
    assert time.monotonic() - started < 15
    assert starts(web)[1] > 1_000_000


def test_a_server_that_only_trickles_counts_as_dead(web, target, content, monkeypatch):
    monkeypatch.setattr(fetch, "TRICKLE_BYTES", 1_000_000)
    web.always(FILE, Fault(bytes_per_s=100_000))
    with pytest.raises(Failure, match=r"bytes came in 0\.2 s.*whether the source is up"):
        bring(web, target, content, PlacesSpec(retries=1, timeout_s=0.2))


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_errors_of_a_server_pass(web, target, content, status):
    web.faults[FILE] = [Fault(status=status), Fault(status=status)]
    bring(web, target, content)
    assert target.read_bytes() == content
    assert len(web.asked) == 3


def test_errors_of_a_server_that_stay_are_named(web, target, content):
    web.always(FILE, Fault(status=503))
    with pytest.raises(Failure, match=rf"{web.url}/{FILE}: the server answers 503") as error:
        bring(web, target, content)
    assert not isinstance(error.value, ShardGone)
    assert len(web.asked) == FAST.retries + 1


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file_is_named_at_once(web, target, content, status):
    web.always(FILE, Fault(status=status))
    with pytest.raises(ShardGone, match=rf"{web.url}/{FILE}: the server answers {status}"):
        bring(web, target, content)
    assert len(web.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_file_is_named_at_once_with_the_remedy(web, target, content, status):
    web.always(FILE, Fault(status=status))
    with pytest.raises(Failure, match=rf"answers {status}.*credentials into ~/\.netrc") as error:
        bring(web, target, content)
    assert not isinstance(error.value, ShardGone)
    assert len(web.asked) == 1


def test_a_web_page_instead_of_a_file_is_never_kept(web, target, content):
    web.always(FILE, Fault(page=True))
    with pytest.raises(ShardGone, match=r"a web page came instead, .*<!DOCTYPE html>"):
        bring(web, target, content)
    assert not target.exists()
    web.faults[FILE], web.forever = [Fault(page=True)], set()
    bring(web, target, content)
    assert target.read_bytes() == content


def test_other_bytes_of_the_right_number_are_never_kept(web, target, content):
    web.always(FILE, Fault(garbage=True))
    with pytest.raises(ShardGone, match="its sha256 differs from the manifest's.*proxy"):
        bring(web, target, content)
    assert not target.exists()
    assert len(web.asked) == 2


def test_too_many_bytes_are_refused_before_they_fill_the_disk(web, target, content):
    web.always(FILE, Fault(extra=5_000_000))
    with pytest.raises(ShardGone, match=r"more bytes than the 3,000,000 expected"):
        bring(web, target, content)
    assert sum(path.stat().st_size for path in target.parent.iterdir()) <= SIZE


def test_a_shorter_file_is_named_as_another_one(web, target, content):
    (web.folder / FILE).write_bytes(content[:-1000])
    with pytest.raises(ShardGone, match="the source has another file than the manifest"):
        bring(web, target, content)


def test_a_server_that_is_not_there_is_named(web, target, content):
    dead = source_of("http://127.0.0.1:9", FAST)
    with pytest.raises(Failure, match=r"http://127.0.0.1:9/train/a.tar: .*Cannot connect"):
        fetch_file(dead, FILE, target, expected(content), FAST)


@pytest.fixture
def in_memory(content):
    """The file in fsspec's memory: the way of object stores, with ranged requests."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/bucket/{FILE}", content)
    yield source_of("memory://bucket", FAST)
    memory.rm("/bucket", recursive=True)


def test_an_object_store_is_read_in_ranged_requests(in_memory, target, content, monkeypatch):
    monkeypatch.setattr("pipeline.data.remote.PIECE_BYTES", 700_000)
    assert isinstance(in_memory, StoreSource)
    _, chunks = in_memory.chunks(FILE, 1_000_000)
    pieces = list(chunks)
    assert [len(piece) for piece in pieces] == [700_000, 700_000, 600_000]
    assert b"".join(pieces) == content[1_000_000:]
    fetch_file(in_memory, FILE, target, expected(content), FAST)
    assert target.read_bytes() == content


def test_a_missing_object_is_named(in_memory, target, content):
    with pytest.raises(ShardGone, match="memory://bucket/train/b.tar"):
        fetch_file(in_memory, "train/b.tar", target, expected(content), FAST)


def test_other_errors_of_a_store_may_pass(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(Dropped, match="IsADirectoryError"):
        list(StoreSource(f"file://{tmp_path}", {}).chunks("folder", 0)[1])


def test_a_store_without_its_package_or_with_wrong_options_is_named(target, content):
    source = StoreSource("s3://bucket", {})
    if not find_spec("s3fs"):
        with pytest.raises(Misuse, match=r"s3://bucket.*[Ii]nstall s3fs"):
            fetch_file(source, FILE, target, expected(content), FAST)
    wrong = HttpSource("http://127.0.0.1:9", 1.0, {"client_kwargs": 3})
    with pytest.raises(Misuse, match="data.shards.storage"):
        fetch_file(wrong, FILE, target, expected(content), FAST)
