"""Files from a server that is slow, drops connections and lies: right in the end, or named."""

import hashlib
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import fetch
from pipeline.data.fetch import Expected, fetch_file
from pipeline.data.places import PlacesSpec, ShardGone
from pipeline.data.remote import Dropped, HttpSource, StoreSource, source_of
from pipeline.spec import Failure, Misuse
from tests.unit.data.faulty_server import Fault, FaultyServer, serving

SIZE = 3_000_000
FAST = PlacesSpec(retries=3, timeout_s=5)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).bytes(SIZE)


@pytest.fixture
def server(tmp_path, content):
    (tmp_path / "served" / "train").mkdir(parents=True)
    (tmp_path / "served" / "train" / "a.tar").write_bytes(content)
    with serving(tmp_path / "served") as state:
        yield state


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "here" / "train" / "a.tar"


FILE = "train/a.tar"


def expected(content: bytes) -> Expected:
    return Expected(len(content), hashlib.sha256(content).hexdigest(), len(content))


def bring(server: FaultyServer, target: Path, content: bytes, spec: PlacesSpec = FAST) -> None:
    fetch_file(source_of(server.url, spec), FILE, target, expected(content), spec)


def starts(server: FaultyServer) -> list[int]:
    return [start for _, start in server.asked]


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_comes_whole_in_one_request(server, target, content):
    bring(server, target, content)
    assert target.read_bytes() == content
    assert starts(server) == [0]
    assert leftovers(target) == ["a.tar"]


def test_a_file_that_is_there_is_not_asked_for_again(server, target, content):
    bring(server, target, content)
    bring(server, target, content)
    assert len(server.asked) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(server, target, content):
    server.faults[FILE] = [Fault(cut=1_000_000), Fault(cut=900_000), Fault(cut=0)]
    bring(server, target, content)
    assert target.read_bytes() == content
    assert len(server.asked) == 4
    assert starts(server) == sorted(starts(server))
    assert starts(server)[1] > 500_000  # what came before the break is kept
    assert server.sent[FILE] < 1.5 * SIZE


def test_any_number_of_breaks_is_survived_while_bytes_come(server, target):
    content = np.random.default_rng(1).bytes(16 << 20)
    (server.folder / FILE).write_bytes(content)
    server.faults[FILE] = [Fault(cut=2_200_000) for _ in range(7)]
    bring(server, target, content, PlacesSpec(retries=0, timeout_s=5))
    assert target.read_bytes() == content
    assert len(server.asked) == 8


def test_a_server_that_ignores_ranges_begins_anew(server, target, content):
    server.faults[FILE] = [Fault(cut=1_000_000), Fault(no_ranges=True)]
    bring(server, target, content)
    assert target.read_bytes() == content


def test_a_range_that_is_not_the_one_asked_for_is_not_used(server, target, content):
    server.faults[FILE] = [Fault(cut=1_000_000), Fault(shift=7)]
    bring(server, target, content)
    assert target.read_bytes() == content
    assert starts(server)[-1] == 0


@pytest.mark.parametrize("lie", [-700_000, 700_000, -SIZE + 1])
def test_a_wrong_content_length_does_no_harm(server, target, content, lie):
    server.faults[FILE] = [Fault(lie=lie)]
    bring(server, target, content)
    assert target.read_bytes() == content


def test_a_server_that_always_lies_about_the_length_is_named(server, target, content):
    server.always(FILE, Fault(lie=-SIZE + 10))
    with pytest.raises(ShardGone, match=rf"{server.url}/{FILE}: .*"):
        bring(server, target, content)
    assert not target.exists()


def test_a_server_that_always_promises_more_is_named(server, target, content):
    server.always(FILE, Fault(cut=0, lie=10))
    with pytest.raises(Failure, match=rf"{server.url}/{FILE}: .*tries without progress: 4"):
        bring(server, target, content)
    assert len(server.asked) == 4


def test_a_slow_server_is_waited_for(server, target, content):
    server.faults[FILE] = [Fault(bytes_per_s=4_000_000)]
    bring(server, target, content, PlacesSpec(retries=0, timeout_s=0.4))
    assert target.read_bytes() == content


def test_a_server_that_stands_still_is_left_and_asked_again(server, target, content):
    server.faults[FILE] = [Fault(cut=2_000_000, stall_s=20)]
    started = time.monotonic()
    bring(server, target, content, PlacesSpec(retries=0, timeout_s=0.3))
    assert target.read_bytes() == content
    assert time.monotonic() - started < 15
    assert starts(server)[1] > 1_000_000


def test_a_server_that_only_trickles_counts_as_dead(server, target, content, monkeypatch):
    monkeypatch.setattr(fetch, "TRICKLE_BYTES", 1_000_000)
    server.always(FILE, Fault(bytes_per_s=100_000))
    with pytest.raises(Failure, match=r"bytes came in 0\.2 s.*whether the source is up"):
        bring(server, target, content, PlacesSpec(retries=1, timeout_s=0.2))


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_errors_of_a_server_pass(server, target, content, status):
    server.faults[FILE] = [Fault(status=status), Fault(status=status)]
    bring(server, target, content)
    assert target.read_bytes() == content
    assert len(server.asked) == 3


def test_errors_of_a_server_that_stay_are_named(server, target, content):
    server.always(FILE, Fault(status=503))
    with pytest.raises(Failure, match=rf"{server.url}/{FILE}: the server answers 503") as error:
        bring(server, target, content)
    assert not isinstance(error.value, ShardGone)
    assert len(server.asked) == FAST.retries + 1


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file_is_named_at_once(server, target, content, status):
    server.always(FILE, Fault(status=status))
    with pytest.raises(ShardGone, match=rf"{server.url}/{FILE}: the server answers {status}"):
        bring(server, target, content)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_file_is_named_at_once_with_the_remedy(server, target, content, status):
    server.always(FILE, Fault(status=status))
    with pytest.raises(Failure, match=rf"answers {status}.*credentials into ~/\.netrc") as error:
        bring(server, target, content)
    assert not isinstance(error.value, ShardGone)
    assert len(server.asked) == 1


def test_a_web_page_instead_of_a_file_is_never_kept(server, target, content):
    server.always(FILE, Fault(page=True))
    with pytest.raises(ShardGone, match=r"a web page came instead, .*<!DOCTYPE html>"):
        bring(server, target, content)
    assert not target.exists()
    server.faults[FILE], server.forever = [Fault(page=True)], set()
    bring(server, target, content)
    assert target.read_bytes() == content


def test_other_bytes_of_the_right_number_are_never_kept(server, target, content):
    server.always(FILE, Fault(garbage=True))
    with pytest.raises(ShardGone, match="its sha256 differs from the manifest's.*proxy"):
        bring(server, target, content)
    assert not target.exists()
    assert len(server.asked) == 2


def test_too_many_bytes_are_refused_before_they_fill_the_disk(server, target, content):
    server.always(FILE, Fault(extra=5_000_000))
    with pytest.raises(ShardGone, match=r"more bytes than the 3,000,000 expected"):
        bring(server, target, content)
    assert sum(path.stat().st_size for path in target.parent.iterdir()) <= SIZE


def test_a_shorter_file_is_named_as_another_one(server, target, content):
    (server.folder / FILE).write_bytes(content[:-1000])
    with pytest.raises(ShardGone, match="the source has another file than the manifest"):
        bring(server, target, content)


def test_a_server_that_is_not_there_is_named(server, target, content):
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
