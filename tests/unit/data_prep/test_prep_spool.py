"""Spools: one pass through a gzip, in buckets of the final order, under caps, kept when whole."""

import contextlib
import gzip
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import data_prep.inflate as inflate
import data_prep.spool as spool_module
from data_prep.catalogue import Catalogue, Container, Reader
from data_prep.failure import Failed
from data_prep.inflate import Budget, Inflater, estimate_bytes
from data_prep.listing import Region
from data_prep.order import rank_of
from data_prep.spool import are_whole, num_buckets, spool
from data_prep.tar import Damaged
from tests.unit.data_prep.imagenet_archives import tar

FILES = {f"n{i % 7}/{i:03d}.jpg": random.Random(i).randbytes(900 + i) for i in range(200)}


def _region(path: Path, data: bytes) -> Region:
    path.write_bytes(data)
    return Region(path, 0, len(data), "", is_gzip=True)


def _contents(catalogue: Catalogue) -> dict[str, bytes]:
    reader = Reader(catalogue.containers)
    found = {place.name: reader.read(place) for place in catalogue.places()}
    reader.close()
    return found


def _inflate_all(data: bytes, budget: Budget | None = None) -> bytes:
    stream = Inflater(lambda at, size: data[at : at + size], 0, len(data), "x.gz", budget)
    return stream.read(0, 1 << 40)


def test_what_comes_out_of_a_gzip_is_what_went_in() -> None:
    plain = random.Random(0).randbytes(300_000) + bytes(3_000_000)
    zipped = gzip.compress(plain)
    assert _inflate_all(zipped) == plain
    assert _inflate_all(zipped + gzip.compress(b"") + zipped + bytes(200_000)) == plain * 2
    stream = Inflater(lambda at, size: zipped[at : at + size], 0, len(zipped), "x.gz")
    assert stream.peek(299_990, 20) == plain[299_990:300_010]
    assert stream.peek(299_995, 10) == plain[299_995:300_005]
    assert stream.read(299_995, 2_000_000) == plain[299_995:2_299_995]
    assert stream.read(4_000_000, 5) == b"" and stream.num_read == len(zipped)


@pytest.mark.parametrize("cut", [0, 1, 9, 10, 5000, -9, -8, -4, -1])
def test_a_cut_gzip_is_named_with_its_byte(cut: int) -> None:
    data = gzip.compress(random.Random(0).randbytes(200_000))[:cut]
    with pytest.raises(Damaged, match=rf"x\.gz: .* damaged gzip at byte {len(data)} "):
        _inflate_all(data)


@pytest.mark.parametrize("tail", [b"\0\0garbage", b"<html>", b"\x1f\x8b\x08"])
def test_what_follows_a_gzip_must_be_a_gzip_or_zeros(tail: bytes) -> None:
    with pytest.raises(Damaged, match="damaged gzip at byte"):
        _inflate_all(gzip.compress(b"abc") + tail)


def test_every_changed_bit_of_a_gzip_is_found_or_changes_nothing() -> None:
    plain = random.Random(1).randbytes(400)
    whole = gzip.compress(plain)
    for bit in range(8 * 10, 8 * len(whole)):  # behind the gzip's own header
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(Damaged):
            assert _inflate_all(bytes(data)) == plain


def test_a_bomb_is_stopped_early_and_so_is_one_inside_another() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    with pytest.raises(Damaged, match="grows more than 100 times"):
        _inflate_all(bomb)
    outer = Budget(1 << 20)
    assert _inflate_all(gzip.compress(bytes(1 << 19)), outer) == bytes(1 << 19)
    with pytest.raises(Damaged, match="grows more than"):
        _inflate_all(gzip.compress(bytes(1 << 20)), outer)


def test_the_size_inside_is_estimated_from_the_beginning() -> None:
    data = gzip.compress(
        b"".join(bytes(1000) + random.Random(i).randbytes(1000) for i in range(4000))
    )
    said = estimate_bytes(lambda at, n: data[at : at + n], 0, len(data), "x.gz", 1 << 20)
    assert abs(said / 8_000_000 - 1) < 0.05


def test_buckets_are_of_about_one_gb() -> None:
    sizes = [0, 1 << 30, (1 << 30) + 1, 5 << 30, 1200 << 30]
    assert [num_buckets(size) for size in sizes] == [1, 1, 2, 8, 256]


def test_buckets_are_ranges_of_the_final_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "BUCKET_BYTES", 64 << 10)
    region = _region(tmp_path / "x.tar.gz", gzip.compress(tar(FILES), 1))
    members = spool(region, tmp_path / "spools", seed=3)
    assert _contents(members) == FILES and len(members.containers) == 8
    assert [place.name for place in members.places()] == list(FILES)  # as in the archive
    by_rank = sorted(members.places(), key=lambda place: rank_of(place.name, 3, "order"))
    buckets = [place.container for place in by_rank]
    assert buckets == sorted(buckets) and len(set(buckets)) == 8
    other = spool(region, tmp_path / "spools", seed=4)
    assert _contents(other) == FILES
    assert [p.container for p in other.places()] != [p.container for p in members.places()]


def test_a_finished_pass_is_kept_and_a_touched_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = _region(tmp_path / "x.tar.gz", gzip.compress(tar(FILES)))
    members = spool(region, tmp_path / "spools", 0)
    bucket = Path(members.containers[0]["path"])
    first = bucket.stat().st_mtime_ns
    spool(region, tmp_path / "spools", 0)
    assert bucket.stat().st_mtime_ns == first
    bucket.write_bytes(bucket.read_bytes()[:-1])
    assert _contents(spool(region, tmp_path / "spools", 0)) == FILES
    bucket.unlink()  # scratch gets swept
    assert _contents(spool(region, tmp_path / "spools", 0)) == FILES
    os.utime(region.path, ns=(1, 1))
    assert spool(region, tmp_path / "spools", 0).path != members.path


KILLED = """
import sys
from pathlib import Path
from data_prep.listing import Region
from data_prep.spool import spool
path = Path(sys.argv[1])
spool(Region(path, 0, path.stat().st_size, "", is_gzip=True), Path(sys.argv[2]), 0)
"""


def test_a_killed_pass_starts_anew(repo: Path, tmp_path: Path) -> None:
    files = {f"{i:05d}.jpg": random.Random(i).randbytes(40_000) for i in range(800)}
    region = _region(tmp_path / "x.tar.gz", gzip.compress(tar(files), 1))
    spools = tmp_path / "spools"
    command = [sys.executable, "-c", KILLED, str(region.path), str(spools)]
    process = subprocess.Popen(command, cwd=repo, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not list(spools.glob("*/bucket-*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    [left] = spools.iterdir()
    assert not (left / "members.json").exists()
    assert _contents(spool(region, spools, 0)) == files


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzip.compress(tar(FILES))[:9000], "gzip at byte 9000"),
        (gzip.compress(tar(FILES)[:5000]), "x.tar.gz, inflated: truncated"),
        (gzip.compress(tar(FILES)[:1324]), "it ends at byte 1324, in n0/000.jpg"),
        (gzip.compress(tar(FILES)) + b"tail", "no gzip starts there"),
        (gzip.compress(tar({"a.tar": tar(FILES)[:5000]})), "in n|after n"),
        (gzip.compress(tar({"a.tgz": gzip.compress(tar(FILES))[:900]})), "a.tgz: truncated"),
        (gzip.compress(b"<html>" * 1000), "tar at byte 0"),
        (gzip.compress(bytes(600 << 20), 9), "grows more than 100 times"),
    ],
    ids=["cut", "cut tar", "cut file", "tail", "cut tar inside", "cut gzip inside", "page", "bomb"],
)
def test_a_broken_archive_leaves_nothing_behind(tmp_path: Path, data: bytes, said: str) -> None:
    region = _region(tmp_path / "x.tar.gz", data)
    with pytest.raises(Damaged, match=said):
        spool(region, tmp_path / "spools", 0)
    left = tmp_path / "spools"
    assert not left.exists() or list(left.iterdir()) == []


def test_a_wrong_checksum_at_the_very_end_is_found(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(tar(FILES)))
    data[-6] ^= 1
    with pytest.raises(Damaged, match="incorrect data check"):
        spool(_region(tmp_path / "x.tar.gz", bytes(data)), tmp_path / "spools", 0)


def test_too_little_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    region = _region(tmp_path / "x.tar.gz", gzip.compress(tar(FILES)))
    with pytest.raises(Failed, match=r"spools: .*takes about 0\.0003? GB|--scratch"):
        spool(region, tmp_path / "spools", 0)
    assert list((tmp_path / "spools").iterdir()) == []


def test_a_disk_that_fills_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    region = _region(tmp_path / "x.tar.gz", gzip.compress(tar(FILES)))
    with pytest.raises(Failed, match=r"spools: the disk is full"):
        spool(region, tmp_path / "spools", 0)


def test_an_archive_of_links_only_is_refused_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.listing.MAX_NOTED", 10)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(20):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type = tarfile.SYMTYPE
            tar.addfile(info)
    region = _region(tmp_path / "x.tar.gz", gzip.compress(buffer.getvalue()))
    with pytest.raises(Damaged, match="more than 10 folders, links and the like"):
        spool(region, tmp_path / "spools", 0)


def test_archives_in_archives_end_somewhere(tmp_path: Path) -> None:
    data = tar({"a.jpg": b"x"})
    for _ in range(10):
        data = gzip.compress(tar({"deeper.tgz": data, "x.tar": tar({"b": b"c"})}))
    with pytest.raises(Damaged, match="more than 8 archives in one another"):
        spool(_region(tmp_path / "x.tar.gz", data), tmp_path / "spools", 0)


def test_a_member_over_the_cap_is_refused_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.listing.MAX_FILE_BYTES", 1000)
    files = {"a.jpg": b"1", "b.jpg": bytes(1001), "c.jpg": b"3"}
    region = _region(tmp_path / "x.tar.gz", gzip.compress(tar(files)))
    members = spool(region, tmp_path / "spools", 0)
    assert list(_contents(members)) == ["a.jpg", "c.jpg"]
    assert [note[:2] for note in members.refused] == [("b.jpg", "too large a file")]


def test_a_gzip_is_read_by_pieces_whatever_it_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate, "_FREE_BYTES", 64 << 20)
    asked: list[int] = []
    data = gzip.compress(bytes(8 << 20))

    def read(at: int, size: int) -> bytes:
        asked.append(size)
        return data[at : at + size]

    Inflater(read, 0, len(data), "x.gz").drain()
    assert max(asked) <= 64 << 10


def test_a_bucket_that_was_cut_or_is_gone_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "spools"
    region = _region(tmp_path / "x.tar.gz", gzip.compress(tar(FILES)))
    containers = spool(region, folder, 0).containers
    elsewhere: list[Container] = [{"path": str(tmp_path / "gone.tar"), "strip": ""}]
    assert are_whole([*containers, *elsewhere], folder)
    bucket = Path(containers[0]["path"])
    os.truncate(bucket, bucket.stat().st_size - 1)
    assert not are_whole(containers, folder)
    bucket.unlink()
    assert not are_whole(containers, folder)
    spool(region, folder, 0)
    assert are_whole(containers, folder)
