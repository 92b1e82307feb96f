"""What lies behind the end mark of a tar: padding, or the rest that was lost."""

import gzip
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.catalogue import Catalogue
from data_prep.listing import Region
from data_prep.sources import Source, write_catalogue
from data_prep.spool import spool
from data_prep.tar import Damaged, walk
from tests.unit.data_prep.imagenet_archives import tar

MB = 1 << 20
FILES = {f"n1/{number:02d}.jpg": random.Random(number).randbytes(400_000) for number in range(12)}
ZEROS = r"after n1/0[3-6]\.jpg \(over 1 MiB of zeros follow its end mark.*get it again"


def _preallocated() -> bytes:
    """Return a tar whose second half was never downloaded."""
    data = tar(FILES)
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def _names(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return [member.name for member in walk(path)]


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "work"
    assert not (tmp_path / "work" / "catalogue.json").exists()


def test_a_tar_whose_rest_is_zeros_is_refused(tmp_path: Path) -> None:
    half = _preallocated()
    with pytest.raises(Damaged, match=rf"x\.tar: truncated or damaged tar at byte \d+, {ZEROS}"):
        _names(tmp_path / "x.tar", half)


def test_so_is_one_inside_a_tar(tmp_path: Path, work: Path) -> None:
    outer = tar({"n1.tar": tar({"ok.jpg": b"1"}), "n2.tar": _preallocated()})
    (tmp_path / "train.tar").write_bytes(outer)
    with pytest.raises(Damaged, match=rf"train\.tar: .* at byte \d+, {ZEROS}"):
        write_catalogue([Source(tmp_path / "train.tar")], work)


def test_so_is_one_inside_a_gzip(tmp_path: Path, work: Path) -> None:
    packed = gzip.compress(_preallocated(), 1)
    (tmp_path / "x.tar.gz").write_bytes(packed)
    with pytest.raises(Damaged, match=rf"x\.tar\.gz, inflated: .*{ZEROS}"):
        write_catalogue([Source(tmp_path / "x.tar.gz")], work)


@pytest.mark.parametrize("kind", ["tar", "tgz"])
def test_so_is_one_inside_a_tar_inside_a_gzip(tmp_path: Path, kind: str) -> None:
    inner = _preallocated() if kind == "tar" else gzip.compress(_preallocated(), 1)
    packed = gzip.compress(tar({f"n1.{kind}": inner, "b.jpg": b"1"}), 1)
    path = tmp_path / "x.tar.gz"
    path.write_bytes(packed)
    with pytest.raises(Damaged, match=ZEROS):
        spool(Region(path, 0, len(packed), "", is_gzip=True), tmp_path / "spools", 0)


@pytest.mark.parametrize("record_bytes", [512, 10_240, 65_536, MB])
def test_padding_up_to_a_record_is_no_damage(tmp_path: Path, record_bytes: int) -> None:
    for size in (1, 512, record_bytes - 2048, record_bytes - 1024, record_bytes - 512):
        used = tar({"a.jpg": b"x" * max(size, 1)})
        used = used[: 512 + -(-max(size, 1) // 512) * 512] + bytes(1024)
        padded = used + bytes(-len(used) % record_bytes)
        assert _names(tmp_path / "x.tar", padded) == ["a.jpg"]


def test_padding_inside_a_gzip_is_no_damage(tmp_path: Path) -> None:
    used = tar({"a.jpg": b"x"})
    data = gzip.compress(tar({"n1.tar": used + bytes(MB - len(used)), "b.jpg": b"1"}))
    path = tmp_path / "x.tar.gz"
    path.write_bytes(data)
    region = Region(path, 0, len(data), "", is_gzip=True)
    found = spool(region, tmp_path / "spools", 0)
    assert isinstance(found, Catalogue)
    assert [place.name for place in found.places()] == ["n1.tar/a.jpg", "b.jpg"]


def test_a_tar_behind_a_gap_is_not_lost_silently(tmp_path: Path) -> None:
    one, two = tar({"a.jpg": b"1"}), tar({"b.jpg": b"2"})
    with pytest.raises(Damaged, match=r"after a\.jpg \(over 1 MiB of zeros"):
        _names(tmp_path / "x.tar", one + bytes(3 * MB) + two)
    with pytest.raises(Damaged, match=r"after a\.jpg \(.* a member follows at byte 5\d{5}\)"):
        _names(tmp_path / "x.tar", one + bytes(500_000 // 512 * 512) + two)


def test_members_are_looked_for_in_the_whole_tail(tmp_path: Path) -> None:
    """What is neither zeros nor a header does not end the search: the rest of a lost member."""
    one, two = tar({"a.jpg": b"1"}), tar({"b.jpg": b"2"})
    rest = (b"\xff" + bytes(511)) * 5000
    with pytest.raises(Damaged, match=rf"a member follows at byte {len(one) + len(rest)}\)"):
        _names(tmp_path / "x.tar", one + rest + two)


def test_the_rest_of_the_last_member_behind_zeros_is_a_loss(tmp_path: Path) -> None:
    data = bytearray(tar(FILES))
    start = data.index(b"n1/11.jpg")
    data[start : start + 100_352] = bytes(100_352)
    with pytest.raises(Damaged, match=r"after n1/10\.jpg \(.*but 4\d{5} bytes follow that are no"):
        _names(tmp_path / "x.tar", bytes(data))


def test_a_giant_of_zeros_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar({"a.jpg": b"1"}))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(Damaged, match="zeros follow"):
        list(walk(path))
