"""Hostile archives: all is refused by name or contained, and nothing is written elsewhere."""

import gzip
import io
import json
import os
import pickle
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.catalogue import Catalogue, Reader
from data_prep.sources import Source, write_catalogue
from data_prep.tar import Damaged, Member, is_header, walk_through
from pipeline.spec import Misuse

END = bytes(1024)
Wrap = Callable[[Path, bytes], Path]


class _Bomb:
    """Leaves a trace where somebody unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("unpickled",)


def _member(
    name: str, data: bytes = b"evil", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(data) if kind in (tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE) else 0
    body = data + bytes(-len(data) % 512) if info.size else b""
    return info.tobuf(tarfile.GNU_FORMAT) + body


def _plain(path: Path, tar: bytes) -> Path:
    path = path / "evil.tar"
    path.write_bytes(tar)
    return path


def _zipped(path: Path, tar: bytes) -> Path:
    path = path / "evil.tar.gz"
    path.write_bytes(gzip.compress(tar))
    return path


def _nested(path: Path, tar: bytes) -> Path:
    return _plain(path, _member("n1.tar", tar) + END)


def _nested_zipped(path: Path, tar: bytes) -> Path:
    return _zipped(path, _member("n1.tar", tar) + END)


def _in_folder(path: Path, tar: bytes) -> Path:
    (path / "raw").mkdir()
    _zipped(path / "raw", tar)
    return path / "raw"


WRAPS = pytest.mark.parametrize("wrap", [_plain, _zipped, _nested, _nested_zipped, _in_folder])


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder deep enough to climb out of; also the working directory."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def _list(source: Path) -> Catalogue:
    """Build the catalogue, and see that nothing was made but the work folder's own files."""
    top = Path.cwd().parents[2]
    before = set(top.rglob("*"))
    work = Path.cwd() / "work"
    try:
        return write_catalogue([Source(source)], work)
    finally:
        made = set(top.rglob("*")) - before
        assert all(path.is_relative_to(work) and not path.is_symlink() for path in made)
        names = {path.name.partition(".")[0].partition("-")[0] for path in made if path.is_file()}
        assert names <= {"catalogue", "listed", "members", "bucket"}


def _names(catalogue: Catalogue) -> list[str]:
    return [place.name.rpartition(".tar/")[2].rpartition(".gz/")[2] for place in catalogue.places()]


@WRAPS
def test_members_that_unpackers_fall_for_are_refused_by_name(inside: Path, wrap: Wrap) -> None:
    evil = [
        (_member("../../outside.jpg"), "unsafe name"),
        (_member("a/../../outside.jpg"), "unsafe name"),
        (_member("/etc/outside.jpg"), "unsafe name"),
        (_member("cat\\..\\x.jpg"), "unsafe name"),
        (_member("cat/\x07bell.jpg"), "unsafe name"),
        (_member("cat/\x1b[2Jclear.jpg"), "unsafe name"),
        (_member("cat/new\nline.jpg"), "unsafe name"),
        (_member("x" * 10_000 + ".jpg"), "unsafe name"),
        (_member("../folder", kind=tarfile.DIRTYPE), "unsafe name"),
        (_member("cat/link.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"), "link"),
        (_member("cat/hard.jpg", kind=tarfile.LNKTYPE, link="cat/good.jpg"), "link"),
        (_member("cat/char.jpg", kind=tarfile.CHRTYPE), "device"),
        (_member("cat/block.jpg", kind=tarfile.BLKTYPE), "device"),
        (_member("cat/fifo.jpg", kind=tarfile.FIFOTYPE), "device"),
        (_member("cat/sparse.jpg", kind=tarfile.GNUTYPE_SPARSE), "special member"),
        (_member("cat/volume.jpg", kind=b"V"), "special member"),
        (_member("cat/twin.jpg", b"first"), ""),
        (_member("cat/twin.jpg", b"second"), "doubled name"),
    ]
    good = (
        _member("cat/good.jpg")
        + _member("cat/code.pyd")
        + _member("cat/1.cls", pickle.dumps(_Bomb()))
    )
    catalogue = _list(wrap(inside, b"".join(data for data, _ in evil) + good + END))
    assert _names(catalogue) == ["cat/twin.jpg", "cat/good.jpg", "cat/code.pyd", "cat/1.cls"]
    kinds = [note.kind for note in catalogue.refused]
    assert sorted(kinds) == sorted(kind for _, kind in evil if kind)
    reader = Reader(catalogue.containers)
    assert reader.read(catalogue.place(0)) == b"first"
    assert all(ord(c) >= 32 for note in catalogue.refused for c in note.file + note.reason)
    assert not Path("unpickled").exists()
    json.dumps([*map(list, catalogue.refused)]).encode()


def _pax(records: bytes) -> bytes:
    return _member("pax", records)[:156] + b"x" + _member("pax", records)[157:]


def _sealed(data: bytes) -> bytes:
    blank = data[:148] + b" " * 8 + data[156:512]
    return data[:148] + b"%06o\0 " % sum(blank) + data[156:]


def _claiming(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo("huge.jpg")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@WRAPS
@pytest.mark.parametrize(
    "tar",
    [
        _claiming(10 << 30) + b"x" * 512 + END,
        _claiming(1 << 62) + b"x" * 512 + END,
        _claiming(-1) + b"x" * 512 + END,
        _claiming(1 << 60, tarfile.GNUTYPE_SPARSE) + END,
        _claiming(1 << 60, b"L") + END,
        _claiming(5000, b"L") + b"x" * 512 + END,
        _sealed(_pax(b"40 size=99999999999999999999999999999\n")) + _member("a.jpg") + END,
        _sealed(_pax(b"16 size=0x10000\n")) + _member("a.jpg") + END,
        _sealed(_pax(b"5 a=\n" * 400_000)) + _member("a.jpg") + END,
        _sealed(_pax(b"99999999 path=x\n")) + _member("a.jpg") + END,
        _member("a.jpg") + b"\xff" * 512 + END,
        _member("a.jpg") + END + _member("b.jpg") + END,
        _member("a.jpg"),
    ],
    ids=[
        *("10 GB", "4 EB", "negative", "sparse giant", "name giant", "cut name", "pax overflow"),
        *("pax hex", "pax million", "pax length", "garbage", "two tars", "no end"),
    ],
)
def test_lies_about_sizes_end_with_the_archive_named(inside: Path, wrap: Wrap, tar: bytes) -> None:
    with pytest.raises(Damaged, match=r"evil\.tar(\.gz)?.*(truncated|damaged)"):
        _list(wrap(inside, tar))


@WRAPS
def test_pax_names_cannot_climb_out(inside: Path, wrap: Wrap) -> None:
    catalogue = _list(wrap(inside, _climbing() + _member("a.jpg") + _member("b.jpg") + END))
    assert _names(catalogue) == ["b.jpg"]
    assert [note.kind for note in catalogue.refused] == ["unsafe name"]


def _climbing() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("x")
        info.pax_headers = {"path": "../../outside.jpg"}
        tar.addfile(info)
    return buffer.getvalue()[:1024]  # the extended header and its records


def test_bombs_are_stopped(inside: Path) -> None:
    zeros = _member("a.jpg", bytes(200 << 20)) + END
    with pytest.raises(Damaged, match="grows more than 100 times"):
        _list(_zipped(inside, zeros))
    bomb_inside = _member("b.tgz", gzip.compress(zeros)) + END
    with pytest.raises(Damaged, match="grows more than 100 times"):
        _list(_plain(inside, bomb_inside))
    with pytest.raises(Damaged, match="grows more than 100 times"):
        _list(_zipped(inside, bomb_inside))
    assert list(Path("work/spools").iterdir()) == []


def test_an_archive_without_a_file_to_take_up_says_so(inside: Path) -> None:
    links = _member("a.jpg", kind=tarfile.SYMTYPE, link="b") * 3
    for wrap in (_plain, _zipped):
        with pytest.raises(Misuse, match="no file found in it"):
            _list(wrap(inside, links + END))


def test_names_that_are_no_text_are_contained(inside: Path) -> None:
    data = bytearray(_member("cat/cafe.jpg"))
    data[7] = 0xE9
    catalogue = _list(_plain(inside, _sealed(bytes(data)) + END))
    assert _names(catalogue) == ["cat/caf\\udce9.jpg"]


def test_links_of_a_folder_are_the_users_own_and_are_read_only(inside: Path) -> None:
    secret = inside.parent / "secret"
    secret.write_bytes(b"x")
    (inside / "raw" / "cat").mkdir(parents=True)
    (inside / "raw" / "cat" / "1.jpg").symlink_to(secret)
    catalogue = _list(inside / "raw")
    assert _names(catalogue) == ["cat/1.jpg"] and secret.read_bytes() == b"x"


def _every_kind() -> bytes:
    """Members with long names, pax headers, a link and a sparse map."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in [("a/" * 80 + "x.jpg", tarfile.REGTYPE), ("b", tarfile.SYMTYPE)] * 2:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, 700 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(bytes(700)))
        whole = buffer.getvalue()
    sparse = _member("s" * 120, b"abc", tarfile.GNUTYPE_SPARSE)
    return whole + sparse + END


def _walk_bytes(data: bytes) -> list[Member]:
    return list(walk_through(lambda at, size: data[at : at + size], 0, len(data), "x.tar"))


def _has_controls(name: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in name)


class _Watched:
    """A tar whose every read is noted: how often, how much, and never backwards."""

    def __init__(self, data: bytes) -> None:
        self.data, self.num_reads, self.largest, self.position = data, 0, 0, 0

    def read(self, at: int, size: int) -> bytes:
        assert at >= self.position
        self.position = at
        self.num_reads, self.largest = self.num_reads + 1, max(self.largest, size)
        return self.data[at : at + size]


WHOLE = _every_kind()
STARTS = [at for at in range(0, len(WHOLE), 512) if is_header(WHOLE[at : at + 512])]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STARTS), st.integers(0, 511), st.binary(max_size=12))))
def test_changed_headers_are_survived(changes: list[tuple[int, int, bytes]]) -> None:
    data = bytearray(WHOLE)
    for start, inside, new in changes:
        new = new[: 512 - inside]
        data[start + inside : start + inside + len(new)] = new
    for start in STARTS:
        data[start : start + 512] = _sealed(bytes(data[start : start + 512]))
    watched = _Watched(bytes(data))
    try:
        for member in walk_through(watched.read, 0, None, "x.tar"):
            assert not _has_controls(member.name) and member.size >= 0
    except Damaged as error:
        assert str(error).startswith("x.tar: truncated or damaged tar at byte ")
    assert watched.num_reads < 2 * len(WHOLE) // 512 and watched.largest <= 1 << 20


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_are_survived(data: bytes) -> None:
    for candidate in (data, _sealed(_pax(data)) + _member("a") + END):
        try:
            assert not any(_has_controls(member.name) for member in _walk_bytes(candidate))
        except Damaged as error:
            assert "truncated or damaged tar at byte " in str(error)
