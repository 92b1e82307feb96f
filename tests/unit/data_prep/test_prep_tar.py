"""The reader of tars: it finds what tarfile finds, and survives what tarfile does not notice."""

import io
import os
import sys
import tarfile
import time
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tar import Damaged, Member, is_header, printable, walk, walk_through

END = bytes(1024)


def _header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def _sealed(header: bytes) -> bytes:
    """Give a header the checksum that its bytes have."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def _pax(records: bytes, kind: bytes = b"x") -> bytes:
    return _header("pax", len(records), kind) + _padded(records)


def _record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def _walk_bytes(data: bytes) -> list[Member]:
    return list(walk_through(lambda at, size: data[at : at + size], 0, len(data), "x.tar"))


def _is_harmless(name: str) -> bool:
    return name.encode().decode() == name and not any(unicodedata.category(c) == "Cc" for c in name)


def _write(files: Iterable[tuple[str, bytes, bytes]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, data in files:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "target" * 30 if kind == tarfile.SYMTYPE else ""
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _said_by_tarfile(data: bytes) -> list[tuple[str, int, int, int, bool]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [
            (printable(i.name), i.offset, i.offset_data if i.isreg() else 0, i.size, i.isdir())
            for i in tar
        ]


NAMES = st.text(
    st.characters(blacklist_characters="\0\\", blacklist_categories=("Cs",)), min_size=1
)
PARTS = st.lists(NAMES.map(lambda n: n.strip("/") or "x"), min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from(
    [tarfile.REGTYPE] * 4 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE]
)
FILES = st.lists(
    st.tuples(st.one_of(PARTS, st.just("long/" * 60 + "x")), KINDS, st.binary(max_size=1500)),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(FILES, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_it_finds_what_tarfile_finds(files: list[tuple[str, bytes, bytes]], form: int) -> None:
    data = _write(files, form)
    found = _walk_bytes(data)
    assert [
        (m.name, m.header, 0 if m.problem.startswith(("link", "device")) else m.offset, m.size)
        for m in found
        if not m.is_folder
    ] == [each[:4] for each in _said_by_tarfile(data) if not each[4]]
    assert [(m.name, m.header) for m in found if m.is_folder] == [
        each[:2] for each in _said_by_tarfile(data) if each[4]
    ]


def test_a_ustar_name_is_put_together_from_both_its_fields() -> None:
    name = "/".join(["folder" * 4] * 8) + "/name.jpg"
    assert len(name) > 150
    found = _walk_bytes(_write([(name, tarfile.REGTYPE, b"x")], tarfile.USTAR_FORMAT))
    assert [member.name for member in found] == [name]


def test_a_gnu_header_has_no_second_name_field(tmp_path: Path) -> None:
    header = bytearray(_header("a.jpg"))
    header[345:357] = b"14631151423\0"  # GNU tar --incremental keeps a time there
    assert _walk_bytes(_sealed(bytes(header)) + END)[0].name == "a.jpg"


def test_sizes_beyond_8_gb_are_read_from_base_256(tmp_path: Path) -> None:
    size = 9 << 30
    tar = tmp_path / "big.tar"
    with tar.open("wb") as file:
        file.write(_header("big.bin", size))
        file.seek(512 + size)  # a hole; the file takes no room
        file.write(_header("b.jpg", 1) + _padded(b"1") + END)
    found = list(walk(tar))
    assert [(m.name, m.size) for m in found] == [("big.bin", size), ("b.jpg", 1)]


def test_a_pax_size_and_path_go_before_the_header() -> None:
    extended = _pax(_record("path", "the/real.jpg") + _record("size", "3") + _record("a", "b\nc"))
    member = _walk_bytes(extended + _header("short", 0) + _padded(b"abc") + _header("b") + END)
    assert [(m.name, m.header, m.size) for m in member] == [
        ("the/real.jpg", 0, 3),
        ("b", len(extended) + 1024, 0),
    ]


def test_a_global_header_holds_for_all_that_follow() -> None:
    data = _pax(_record("size", "2"), b"g") + (_header("a") + _padded(b"12")) * 2 + END
    assert [m.size for m in _walk_bytes(data)] == [2, 2]


def test_v7_folders_and_old_sun_checksums_are_known() -> None:
    header = _sealed(_header("cat/")[:156] + b"\0" + bytes(355))
    assert _walk_bytes(header + END)[0].is_folder
    name = _header("caf\xe9")
    signed = sum(name) - 256 * sum(byte > 127 for byte in name)
    blank = sum(name[148:156]) - 256
    sun = name[:148] + b"%06o\0 " % (signed - blank) + name[156:]
    assert sun != name and is_header(sun) and is_header(name)


@pytest.mark.parametrize(
    "data",
    [
        _header("s", 512, tarfile.GNUTYPE_SPARSE) + bytes(512),
        _pax(_record("GNU.sparse.major", "1") + _record("GNU.sparse.realsize", str(1 << 60)))
        + _header("s", 512)
        + bytes(512),
        _header("s", 512, b"Z") + bytes(512),
    ],
    ids=["gnu sparse", "pax sparse giant", "unknown"],
)
def test_special_members_are_refused_and_passed_over(data: bytes) -> None:
    special, plain = _walk_bytes(data + _header("a.jpg", 1) + _padded(b"1") + END)
    assert special.problem == "special member: sparse or unknown, not a regular file"
    assert (plain.name, plain.problem) == ("a.jpg", "")


def test_the_map_of_a_sparse_file_is_passed_over() -> None:
    header = bytearray(_header("s", 512, tarfile.GNUTYPE_SPARSE))
    header[482] = 1
    more = bytes(504) + b"\x01" + bytes(7)
    data = _sealed(bytes(header)) + more + bytes(512) + b"d" * 512
    assert [m.name for m in _walk_bytes(data + _header("a.jpg") + END)] == ["s", "a.jpg"]
    with pytest.raises(Damaged, match="map of a sparse file"):
        _walk_bytes(_sealed(bytes(header)) + more * 5)


@pytest.mark.parametrize("cut", [0, 100, 512, 700, 1024, 1500, 1536, 2048])
def test_a_cut_tar_is_refused_wherever_it_is_cut(tmp_path: Path, cut: int) -> None:
    files = [("a.jpg", tarfile.REGTYPE, b"1" * 600), ("b.jpg", tarfile.REGTYPE, b"2" * 600)]
    tar = tmp_path / "x.tar"
    tar.write_bytes(_write(files, tarfile.USTAR_FORMAT)[:cut])
    with pytest.raises(Damaged, match=r"x\.tar: truncated or damaged tar at byte .*get it again"):
        list(walk(tar))


def test_garbage_between_members_is_no_end() -> None:
    data = bytearray(_header("a.jpg", 1) + _padded(b"1") + _header("b.jpg") + END)
    data[1024 + 20] ^= 1
    with pytest.raises(Damaged, match=r"at byte 1024, after a\.jpg \(no header"):
        _walk_bytes(bytes(data))


@pytest.mark.parametrize("zeros", [512, 1024, 10240])
def test_members_behind_an_end_mark_are_not_lost_silently(zeros: int) -> None:
    one = _header("a.jpg", 1) + _padded(b"1")
    with pytest.raises(Damaged, match=rf"at byte 1024, after a\.jpg .*byte {1024 + zeros}"):
        _walk_bytes(one + bytes(zeros) + one + END)


def test_what_was_left_behind_the_end_mark_may_be_anything_else() -> None:
    assert len(_walk_bytes(_header("a.jpg") + END + b"left over" * 1000)) == 1


@pytest.mark.parametrize("size", [10 << 30, 1 << 62, -512, -(1 << 40), 4096])
def test_a_member_that_claims_more_than_there_is_ends_with_its_name(size: int) -> None:
    with pytest.raises(Damaged, match=r"x\.tar: truncated or damaged tar at byte 0.*claims"):
        _walk_bytes(_header("huge.jpg", size) + b"x" * 512 + END)


@pytest.mark.parametrize(
    ("extension", "said"),
    [
        (_pax(_record("size", "9" * 30)), "claims b'9999"),
        (_pax(_record("size", "-1")), "claims b'-1'"),
        (_pax(_record("size", "99999999")), "claims 99999999 bytes, more than there are"),
        (_pax(b"99999 path=x\n"), "a damaged extended header"),
        (_pax(b"0 path=x\n"), "a damaged extended header"),
        (_pax(b"path=x\n"), "a damaged extended header"),
        (_pax(b"-3 path=x\n"), "a damaged extended header"),
        (_header("x", 2 << 20, b"x") + bytes(2 << 20), "claims 2097152 bytes"),
        (_header("x", 1 << 60, b"L"), "claims 1152921504606846976 bytes"),
        (_header("x", 100_000, b"L") + b"x" * 512, "within an extended header"),
        (_pax(_record("path", "x")) + END, "without a member"),
    ],
)
def test_lies_of_extended_headers_are_refused(extension: bytes, said: str) -> None:
    with pytest.raises(Damaged, match=said):
        _walk_bytes(extension + _header("a.jpg") + END)


def test_a_pax_header_of_many_entries_takes_neither_time_nor_memory() -> None:
    entries = _record("a", "") * 150_000
    assert len(entries) < 1 << 20
    start = time.perf_counter()
    assert [m.name for m in _walk_bytes(_pax(entries) + _header("a.jpg") + END)] == ["a.jpg"]
    with pytest.raises(Damaged, match="an extended header claims"):
        _walk_bytes(_pax(_record("a", "b") * 1_000_000) + _header("a.jpg") + END)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../../out.jpg", "unsafe name: absolute"),
        ("a/../b.jpg", "unsafe name: absolute"),
        ("/etc/x.jpg", "unsafe name: absolute"),
        ("a\\b.jpg", "unsafe name: absolute"),
        ("a\x07b.jpg", "unsafe name: control"),
        ("a\nb.jpg", "unsafe name: control"),
        ("a\x7fb.jpg", "unsafe name: control"),
        ("a\x9bb.jpg", "unsafe name: control"),
        ("x" * 10_000, "unsafe name: 10000 bytes"),
        ("a..b/c.jpg", ""),
        ("caf\xe9.jpg", ""),
        ("\u4e2d" * 200, ""),
    ],
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_are_judged_and_can_be_shown(name: str, problem: str, form: int) -> None:
    [member] = _walk_bytes(_write([(name, tarfile.REGTYPE, b"x")], form))
    assert member.problem.startswith(problem) and bool(member.problem) == bool(problem)
    assert _is_harmless(member.name) and len(member.name) <= 4096


def test_a_nul_in_a_pax_name_and_an_empty_name_are_unsafe() -> None:
    found = _walk_bytes(_pax(_record("path", "a\0b.jpg")) + _header("x") + _header("") + END)
    assert [m.problem.partition(":")[0] for m in found] == ["unsafe name"] * 2
    assert found[0].name == "a\\x00b.jpg"


def test_bytes_that_are_no_utf8_are_shown_escaped() -> None:
    header = bytearray(_header("cafe.jpg"))
    header[3] = 0xE9
    [member] = _walk_bytes(_sealed(bytes(header)) + END)
    assert (member.name, member.problem) == ("caf\\udce9.jpg", "")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"none\.tar: cannot be read \(No such file"):
        list(walk(tmp_path / "none.tar"))
    with pytest.raises(Damaged, match=r"cannot be read \(Is a directory"):
        list(walk(tmp_path))


def test_a_part_of_a_file_is_walked_by_itself(tmp_path: Path) -> None:
    inner = _header("a.jpg", 1) + _padded(b"1") + END
    path = tmp_path / "x.tar"
    path.write_bytes(b"z" * 100 + inner + b"z" * 5000)
    [member] = walk(path, 100, 100 + len(inner))
    assert (member.header, member.offset) == (100, 612)
    with pytest.raises(Damaged, match="at byte 1124"):
        list(walk(path, 100, 100 + 1024))


@pytest.mark.skipif(sys.gettrace() is not None, reason="tracing (coverage) slows only our side")
def test_it_is_several_times_faster_than_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    files = ((f"n01440764_{i}.JPEG", tarfile.REGTYPE, b"x" * 100) for i in range(4000))
    path.write_bytes(_write(files, tarfile.GNU_FORMAT))

    def best_s(function: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    def with_tarfile() -> None:
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) == 4000

    assert best_s(lambda: list(walk(path))) * 3 < best_s(with_tarfile)


def test_printable_changes_only_what_cannot_be_shown() -> None:
    assert printable("cat/a b~.jpg") == "cat/a b~.jpg"
    assert printable("\u4e2d\x07\n\x9b") == "\u4e2d\\x07\\x0a\\x9b"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\udce9"
