"""Sources: trees, tars, tars in tars; hostile members never leave the tar they came in."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import data_prep.archive as archive
from data_prep.archive import Damaged, walk
from data_prep.sources import Listing, Reader, list_source
from pipeline.spec import Misuse

Encode = Callable[..., bytes]
MakeTar = Callable[[Path, Mapping[str, bytes]], Path]


def _contents(listing: Listing) -> dict[str, bytes]:
    reader = Reader(listing.root)
    found = {place.name: reader.read(place) for place in listing.places}
    reader.close()
    return found


def test_a_tree_a_tar_and_a_zipped_tar_give_the_same(
    tmp_path: Path, make_tree: Callable[..., Path], make_tar: MakeTar
) -> None:
    tree = make_tree({"cat": 2, "dog": 3})
    files = {p.relative_to(tree).as_posix(): p.read_bytes() for p in sorted(tree.rglob("*.jpg"))}
    assert _contents(list_source(tree, tmp_path)) == files
    for name in ("x.tar", "x.tar.gz"):
        tar = make_tar(tmp_path / name, files)
        assert _contents(list_source(tar, tmp_path)) == files


def test_tars_inside_a_tar_and_inside_a_tree_are_folders(tmp_path: Path, make_tar: MakeTar) -> None:
    inner = make_tar(tmp_path / "n00000001.tar", {"n00000001_1.JPEG": b"one", "b": b"two"})
    raw = tmp_path / "raw"
    raw.mkdir()
    inner.rename(raw / inner.name)
    wanted = {"n00000001.tar/n00000001_1.JPEG": b"one", "n00000001.tar/b": b"two"}
    assert _contents(list_source(raw, tmp_path)) == wanted
    outer = make_tar(
        tmp_path / "all.tar", {inner.name: (raw / inner.name).read_bytes(), "z.jpg": b"3"}
    )
    assert _contents(list_source(outer, tmp_path)) == {**wanted, "z.jpg": b"3"}


def _evil(path: Path) -> Path:
    """A tar of one good member among those that unpackers fall for."""
    with tarfile.open(path, "w") as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"evil"))

        add("../../outside.jpg")
        add("/etc/outside.jpg")
        add("cat/..\\x.jpg")
        add("cat/\x07bell.jpg")
        add("cat/link.jpg", tarfile.SYMTYPE, "/etc/passwd")
        add("cat/hard.jpg", tarfile.LNKTYPE, "cat/good.jpg")
        add("cat/device.jpg", tarfile.CHRTYPE)
        add("cat/fifo.jpg", tarfile.FIFOTYPE)
        add("cat/good.jpg")
        add("cat/code.pyd")
    return path


def test_hostile_members_are_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    listing = list_source(_evil(folder / "evil.tar"), folder)
    assert [place.name for place in listing.places] == ["cat/good.jpg", "cat/code.pyd"]
    kinds = [kind for _, kind, _ in listing.refused]
    assert kinds == ["unsafe name"] * 4 + ["link"] * 2 + ["device"] * 2
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "evil.tar"]


def _claim(size: int) -> bytes:
    """A tar with one member whose header claims `size` bytes."""
    info = tarfile.TarInfo("huge.jpg")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512 + b"\0" * 1024


@pytest.mark.parametrize("size", [10 << 30, 1 << 62, -512, -(1 << 40), 4096])
def test_a_member_that_claims_more_than_there_is_ends_with_its_name(
    tmp_path: Path, size: int
) -> None:
    tar = tmp_path / "huge.tar"
    tar.write_bytes(_claim(size))
    with pytest.raises(Damaged, match=r"huge\.tar: truncated or damaged tar at byte 0.*get it ag"):
        list(walk(tar))


def test_a_member_over_the_cap_is_refused_without_reading_it(tmp_path: Path) -> None:
    tar = tmp_path / "large.tar"
    size = 200 << 20
    with tar.open("wb") as file:
        file.write(_claim(size)[:512])
        file.truncate(512 + size + 1024)  # a sparse file
    with pytest.raises(Misuse, match="no file found"):
        list_source(tar, tmp_path)


@pytest.mark.parametrize("cut", [100, 512, 700, 1024, 1500, 1536])
def test_a_cut_tar_is_refused_wherever_it_is_cut(
    tmp_path: Path, make_tar: MakeTar, cut: int
) -> None:
    tar = make_tar(tmp_path / "x.tar", {"a.jpg": b"1" * 600, "b.jpg": b"2"})
    tar.write_bytes(tar.read_bytes()[:cut])
    with pytest.raises(Damaged, match=r"x\.tar: truncated or damaged tar"):
        list(walk(tar))


def test_garbage_between_members_is_no_end(tmp_path: Path, make_tar: MakeTar) -> None:
    tar = make_tar(tmp_path / "x.tar", {"a.jpg": b"1", "b.jpg": b"2"})
    data = bytearray(tar.read_bytes())
    data[1024 + 20] ^= 1  # in the header of b.jpg
    tar.write_bytes(bytes(data))
    with pytest.raises(Damaged, match=r"at byte 1024, after a\.jpg"):
        list(walk(tar))


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.tar"
    path.write_text("<html>not found</html>" * 100)
    with pytest.raises(Misuse, match=r"page\.tar: truncated or damaged tar at byte 0"):
        list_source(path, tmp_path)
    with pytest.raises(Misuse, match=r"none: no such folder or tar"):
        list_source(tmp_path / "none", tmp_path)


def test_a_cut_gzip_leaves_nothing_behind(tmp_path: Path, make_tar: MakeTar) -> None:
    tar = make_tar(tmp_path / "x.tar.gz", {"a.jpg": os.urandom(5000)})
    tar.write_bytes(tar.read_bytes()[:2000])
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(Damaged, match=r"x\.tar\.gz: truncated or damaged"):
        list_source(tar, work)
    assert list(work.iterdir()) == []


def test_a_gzip_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_BLOCK_BYTES", 1 << 16)
    bomb = tmp_path / "bomb.tar.gz"
    bomb.write_bytes(gzip.compress(bytes(20 << 20)))
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(Damaged, match="grows more than 100 times"):
        list_source(bomb, work)
    assert list(work.iterdir()) == []


def test_special_and_hidden_files_of_a_tree(tmp_path: Path, encode: Encode) -> None:
    cat = tmp_path / "raw" / "cat"
    cat.mkdir(parents=True)
    (cat / "a.jpg").write_bytes(encode())
    (cat / ".DS_Store").write_bytes(b"x")
    (cat / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(cat / "pipe.jpg")
    (cat / "circle").symlink_to(tmp_path / "raw")
    (tmp_path / "raw" / ".git").mkdir()
    listing = list_source(tmp_path / "raw", tmp_path)
    assert [place.name for place in listing.places] == ["cat/a.jpg"]
    assert sorted(listing.refused) == [
        ("cat/gone.jpg", "cannot be read", "cannot be read: No such file or directory"),
        ("cat/pipe.jpg", "special file", "not a regular file"),
    ]
    assert "cat" in listing.folders and ".git" not in listing.folders


def test_names_that_are_no_text_are_read_and_shown(tmp_path: Path) -> None:
    cat = tmp_path / "raw" / "cat"
    cat.mkdir(parents=True)
    (Path(os.fsdecode(os.fsencode(cat) + b"/caf\xe9.jpg"))).write_bytes(b"x")
    listing = list_source(tmp_path / "raw", tmp_path)
    assert list(_contents(listing).values()) == [b"x"]
    assert archive.printable(listing.places[0].name).startswith("cat/caf\\")
