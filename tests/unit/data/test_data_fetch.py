"""Bringing a file: whole or not at all, through kills, forks, damaged parts and failing disks."""

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.data import fetch
from pipeline.data.fetch import fetch_file
from pipeline.data.places import ShardGone
from pipeline.data.remote import FolderSource, source_of
from pipeline.spec import Failure
from tests.unit.data.faulty_server import Fault
from tests.unit.data.one_file import FAST, FILE, SIZE, bring, expected, leftovers, starts

pytestmark = pytest.mark.usefixtures("short_pauses")


def test_a_part_of_a_killed_process_is_gone_on_with(web, target, content):
    web.faults[FILE] = [Fault(bytes_per_s=1_000_000)]
    script = (
        "import sys; from pathlib import Path; from pipeline.data.fetch import *;"
        "from pipeline.data.remote import source_of; spec = PlacesSpec();"
        f"fetch_file(source_of(sys.argv[1], spec), '{FILE}', Path(sys.argv[2]),"
        f"Expected({SIZE}, sys.argv[3], {SIZE}), spec)"
    )
    digest = expected(content).sha256 or ""
    process = subprocess.Popen([sys.executable, "-c", script, web.url, str(target), digest])
    part = target.with_name("a.tar.part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 500_000):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not target.exists()
    bring(web, target, content)
    assert target.read_bytes() == content
    assert starts(web)[-1] > 500_000


def test_a_damaged_part_does_not_spoil_the_file(web, target, content):
    target.parent.mkdir(parents=True)
    target.with_name("a.tar.part").write_bytes(bytes(1_500_000))
    bring(web, target, content)
    assert target.read_bytes() == content
    assert starts(web) == [1_500_000, 0]


@pytest.mark.parametrize("left", [SIZE, SIZE + 5])
def test_a_part_that_lacks_only_its_name_gets_it(web, target, content, left):
    target.parent.mkdir(parents=True)
    target.with_name("a.tar.part").write_bytes((content + b"12345")[:left])
    bring(web, target, content)
    assert target.read_bytes() == content
    assert starts(web) == ([] if left == SIZE else [0])


def test_a_wrong_file_gives_way_to_the_right_one_once(web, target, content):
    target.parent.mkdir(parents=True)
    target.write_bytes(content[:-1] + b"?")
    source = source_of(web.url, FAST)
    with target.open("rb") as opened, ThreadPoolExecutor(4) as pool:
        for _ in pool.map(
            lambda _: fetch_file(source, FILE, target, expected(content), FAST, check=True),
            range(4),
        ):
            pass
        assert opened.read() == content[:-1] + b"?"  # whoever has it open keeps it
    assert target.read_bytes() == content
    assert starts(web) == [0]
    assert leftovers(target) == ["a.tar"]


def test_a_full_disk_is_named(web, target, content):
    script = (
        "import resource, sys; from pathlib import Path; from pipeline.data.fetch import *;"
        "from pipeline.data.remote import source_of; spec = PlacesSpec();"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        f"fetch_file(source_of(sys.argv[1], spec), '{FILE}', Path(sys.argv[2]),"
        f"Expected({SIZE}, None, {SIZE}), spec)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, web.url, str(target)], capture_output=True, text=True
    )
    told = done.stderr.splitlines()[-1]
    assert "Failure" in told
    assert f"{target}.part: File too large" in told
    assert "data.shards.max_gb" in told


def test_it_works_in_a_forked_process_too(web, target, content):
    bring(web, target, content)  # starts fsspec's thread here
    other = target.with_name("b.tar")
    child = os.fork()
    if child == 0:
        try:
            fetch_file(source_of(web.url, FAST), FILE, other, expected(content), FAST)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert other.read_bytes() == content


def test_the_global_random_numbers_are_left_alone(web, target, content):
    random.seed(3)
    first = random.random()
    random.seed(3)
    web.faults[FILE] = [Fault(status=500)]
    bring(web, target, content)
    assert random.random() == first


def test_pauses_grow_and_stay_bounded(monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.5)
    for failed in range(1, 20):
        middle = min(0.5 * 2 ** (failed - 1), fetch.MAX_BACKOFF_S)
        assert 0.5 * middle <= fetch.pause_s(failed) <= 1.5 * middle


def test_a_folder_is_a_source_too(tmp_path, target, content):
    (tmp_path / "a.tar").write_bytes(content)
    source = source_of(str(tmp_path), FAST)
    assert isinstance(source, FolderSource)
    fetch_file(source, "a.tar", target, expected(content), FAST)
    assert target.read_bytes() == content
    with pytest.raises(ShardGone, match=f"{tmp_path}/b.tar: no such file"):
        fetch_file(source, "b.tar", target.with_name("b.tar"), expected(content), FAST)


def test_a_disk_that_returns_errors_is_named(tmp_path, target, content):
    (tmp_path / "a.tar").symlink_to("/proc/self/mem")  # reading its first bytes is an I/O error
    with pytest.raises(Failure, match=rf"{tmp_path}/a.tar: cannot be read \(Input/output error\)"):
        fetch_file(FolderSource(tmp_path), "a.tar", target, expected(content), FAST)
    assert not target.exists()
