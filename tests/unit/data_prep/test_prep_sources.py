"""Sources: folders, tars and gzips in one another become one catalogue, whoever walks them."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

import data_prep.gather as gather
import data_prep.listing as listing
import data_prep.sources as sources_module
from data_prep.catalogue import Catalogue, Reader
from data_prep.sources import Source, write_catalogue
from data_prep.tar import Damaged
from pipeline.spec import Misuse
from tests.unit.data_prep.imagenet_archives import tar

Files = Mapping[str, bytes]
TREE = {"cat/1.jpg": b"one", "cat/2.jpg": b"", "dog/1.jpg": b"three" * 300}


def _tar(files: Files, gzipped: bool = False) -> bytes:
    return gzip.compress(tar(files), 1) if gzipped else tar(files)


def _spread(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def _contents(catalogue: Catalogue) -> dict[str, bytes]:
    reader = Reader(catalogue.containers)
    found = {place.name: reader.read(place) for place in catalogue.places()}
    reader.close()
    assert len(found) == len(catalogue)
    return found


def _list(*sources: Source, work: Path, workers: int = 1) -> Catalogue:
    return write_catalogue(sources, work, workers=workers)


def test_a_tree_a_tar_and_a_gzip_under_any_name_give_the_same(tmp_path: Path) -> None:
    tree = _spread(tmp_path / "raw", TREE)
    assert _contents(_list(Source(tree), work=tmp_path / "w")) == TREE
    for name in ("x.tar", "x.tar.gz", "x.tgz", "download", "x.gz"):
        path = tmp_path / name
        path.write_bytes(_tar(TREE, gzipped=name != "x.tar"))
        catalogue = _list(Source(path), work=tmp_path / f"w-{name}")
        assert _contents(catalogue) == TREE and not catalogue.refused


NESTED: dict[str, Files] = {
    "n1.tar": {"n1_1.JPEG": b"one", "deep/n1_2.JPEG": b"two"},
    "n2.tgz": {"n2_1.JPEG": b"three" * 1000},
    "n3.tar": {},
}
FLAT = {
    f"{archive}/{name}": data for archive, files in NESTED.items() for name, data in files.items()
}


def _nested() -> dict[str, bytes]:
    return {
        **{name: _tar(files, name.endswith("gz")) for name, files in NESTED.items()},
        "loose.jpg": b"loose",
    }


@pytest.mark.parametrize("outer", ["folder", "x.tar", "x.tar.gz"])
def test_archives_inside_are_folders_of_their_names(tmp_path: Path, outer: str) -> None:
    if outer == "folder":
        _spread(tmp_path / outer, _nested())
    else:
        (tmp_path / outer).write_bytes(_tar(_nested(), outer.endswith("gz")))
    catalogue = _list(Source(tmp_path / outer), work=tmp_path / "w")
    assert _contents(catalogue) == {**FLAT, "loose.jpg": b"loose"}
    assert set(catalogue.folders) == set(NESTED)


def test_archives_are_opened_three_deep(tmp_path: Path) -> None:
    middle = _tar(_nested(), gzipped=True)
    _spread(tmp_path / "raw", {"a/outer.tar": _tar({"m.tar.gz": middle, "z.jpg": b"z"})})
    found = _contents(_list(Source(tmp_path / "raw", "eval/"), work=tmp_path / "w"))
    inner = {f"eval/a/outer.tar/m.tar.gz/{name}": data for name, data in FLAT.items()}
    last = {"eval/a/outer.tar/m.tar.gz/loose.jpg": b"loose", "eval/a/outer.tar/z.jpg": b"z"}
    assert found == {**inner, **last}


def test_what_is_named_like_an_archive_is_judged_by_its_bytes(tmp_path: Path) -> None:
    photo = gzip.compress(b"\xff\xd8\xff a photo" * 100)
    files = {
        "cat/1.JPEG": photo,
        "cat/2.jpg.gz": photo,
        "cat/broken.gz": b"\x1f\x8b neither",
        "cat/readme.gz": b"not at all",
        "dog.tar.gz": _tar({"1.jpg": b"unzipped by the browser"}),
        "elk.tar": _tar({"1.jpg": b"still zipped"}, gzipped=True),
        "fox.gz": _tar({"1.jpg": b"hidden well"}, gzipped=True),
    }
    found = _contents(_list(Source(_spread(tmp_path / "raw", files)), work=tmp_path / "w"))
    assert sorted(found) == [
        *("cat/1.JPEG", "cat/2.jpg.gz", "cat/broken.gz", "cat/readme.gz"),
        *("dog.tar.gz/1.jpg", "elk.tar/1.jpg", "fox.gz/1.jpg"),
    ]
    assert found["cat/1.JPEG"] == photo


@pytest.mark.parametrize("name", ["page.tar", "page.tar.gz", "page.tgz"])
def test_a_web_page_named_like_an_archive_is_no_archive(tmp_path: Path, name: str) -> None:
    _spread(tmp_path / "raw", {name: b"<html>not found</html>" * 100, "cat/1.jpg": b"x"})
    with pytest.raises(Damaged, match=rf"{name}: truncated or damaged tar at byte 0"):
        _list(Source(tmp_path / "raw"), work=tmp_path / "w")


def _train_and_val(tmp_path: Path) -> list[Source]:
    classes = {
        f"n{c:08d}.tar": _tar({f"n{c:08d}_{i}.JPEG": bytes([c, i]) * 9 for i in range(c % 7)})
        for c in range(40)
    }
    (tmp_path / "train.tar").write_bytes(_tar({**classes, "between.jpg": b"x"}))
    val = _spread(tmp_path / "val", {**TREE, "more.tgz": _tar(TREE, gzipped=True), **classes})
    return [Source(tmp_path / "train.tar"), Source(val, "eval/")]


def _count_tasks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that will hold how many tars were left to workers, for each source."""
    counts: list[int] = []
    real = gather.run

    def counting(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Any:
        results = list(real(function, tasks, workers))
        counts.append(len(results))
        return results

    monkeypatch.setattr(gather, "run", counting)
    return counts


def test_the_catalogue_is_the_same_from_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "MAX_TASK_BYTES", 64 << 10)
    num_tasks = _count_tasks(monkeypatch)
    sources = _train_and_val(tmp_path)
    listed = []
    for workers in (1, 2):
        catalogue = _list(*sources, work=tmp_path / f"w{workers}", workers=workers)
        names = [catalogue.name(row) for row in range(len(catalogue))]
        paths = [each["path"].replace(f"/w{workers}/", "/w/") for each in catalogue.containers]
        listed.append((names, catalogue.rows.tobytes(), paths, catalogue.fingerprint))
        assert _contents(catalogue)["between.jpg"] == b"x"
    assert listed[0] == listed[1] and num_tasks == [32, 40] * 2
    assert len(listed[0][0]) == 1 + 2 * sum(c % 7 for c in range(40)) + 2 * len(TREE)


def test_waiting_files_stay_few_where_one_tar_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "_MAX_WAITING", 3)
    monkeypatch.setattr(gather, "_WORTH_WORKERS", 0)
    monkeypatch.setattr(listing, "_BATCH_ROWS", 2)
    files = {f"{i:03d}.jpg": b"%d" % i for i in range(40)}
    raw = _spread(tmp_path / "raw", {**files, "000.tar": _tar(files), "001.tar": _tar(files)})
    assert len(_list(Source(raw), work=tmp_path / "w", workers=2)) == 120


def test_two_files_of_one_name_become_one(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in [("a/1", b"first"), ("a/2", b"x"), ("./a//1", b"second"), ("a/1", b"3")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    source = Source(tmp_path / "x.tar")
    catalogue = _list(source, source, work=tmp_path / "w")
    assert _contents(catalogue) == {"a/1": b"first", "a/2": b"x"}
    reason = "another file of this name comes before it"
    names = ["a/1", "a/1", *("a/1", "a/2", "a/1", "a/1")]  # of the first and of the second tar
    assert list(catalogue.refused) == [(name, "doubled name", reason) for name in names]
    assert [path.name for path in (tmp_path / "w").glob("listed*")] == []


def test_the_fingerprint_changes_with_a_file_and_not_with_the_place(tmp_path: Path) -> None:
    raw = _spread(tmp_path / "raw", {**TREE, "x.tar": _tar(TREE)})
    first = _list(Source(raw), work=tmp_path / "w1").fingerprint
    raw.rename(tmp_path / "moved")
    assert _list(Source(tmp_path / "moved"), work=tmp_path / "w2").fingerprint == first
    os.utime(tmp_path / "moved" / "x.tar", ns=(1, 1))
    assert _list(Source(tmp_path / "moved"), work=tmp_path / "w3").fingerprint != first


def test_special_and_hidden_files_of_a_tree(tmp_path: Path) -> None:
    raw = _spread(tmp_path / "raw", {"cat/a.jpg": b"x", "cat/.DS_Store": b"x", ".git/x": b"x"})
    (raw / "cat" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(raw / "cat" / "pipe.tar")
    (raw / "cat" / "circle").symlink_to(raw)
    (raw / "dog").symlink_to(raw / "cat")
    (raw / "elk").mkdir()
    catalogue = _list(Source(raw, "p/"), work=tmp_path / "w")
    assert list(_contents(catalogue)) == ["p/cat/a.jpg", "p/dog/a.jpg"]
    assert catalogue.folders == ["p/cat", "p/dog", "p/elk"]
    assert [note for note in catalogue.refused if note.file.startswith("p/cat")] == [
        ("p/cat/gone.jpg", "cannot be read", "cannot be read: No such file or directory"),
        ("p/cat/pipe.tar", "special file", "not a regular file"),
    ]


def test_folders_are_followed_only_so_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "MAX_FOLDERS_DEEP", 3)
    raw = _spread(tmp_path / "raw", {"a/b/c/1.jpg": b"x", "a/b/c/d/2.jpg": b"x"})
    catalogue = _list(Source(raw), work=tmp_path / "w")
    assert list(_contents(catalogue)) == ["a/b/c/1.jpg"]
    assert [note[:2] for note in catalogue.refused] == [("a/b/c/d", "too deep")]


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    raw = _spread(tmp_path / "raw", {os.fsdecode(b"cat/caf\xe9.jpg"): b"x"})
    assert list(_contents(_list(Source(raw), work=tmp_path / "w")).values()) == [b"x"]


def test_hidden_members_are_left_out_without_a_note(tmp_path: Path) -> None:
    files = {"./cat/1.jpg": b"1", "cat/._1.jpg": b"2", ".git/x": b"3", "a/.b/c": b"4", "b..c": b"5"}
    (tmp_path / "x.tar").write_bytes(_tar(files))
    catalogue = _list(Source(tmp_path / "x.tar"), work=tmp_path / "w")
    assert _contents(catalogue) == {"cat/1.jpg": b"1", "b..c": b"5"} and not catalogue.refused


def test_a_file_over_the_cap_is_refused_without_reading_it(tmp_path: Path) -> None:
    raw = _spread(tmp_path / "raw", {"a.jpg": b"x"})
    with (raw / "huge.jpg").open("wb") as file:
        file.truncate(listing.MAX_FILE_BYTES + 1)
    [note] = _list(Source(raw), work=tmp_path / "w").refused
    assert note[:2] == ("huge.jpg", "too large a file") and "268435457 bytes" in note.reason


def test_a_source_that_is_missing_empty_or_special_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="none: no such folder or archive"):
        _list(Source(tmp_path / "none"), work=tmp_path / "w")
    (tmp_path / "raw").mkdir()
    good = Source(_spread(tmp_path / "good", TREE))
    with pytest.raises(Misuse, match="raw: no file found in it"):
        _list(good, Source(tmp_path / "raw"), work=tmp_path / "w")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Misuse, match="pipe: no such folder or archive"):
        _list(Source(tmp_path / "pipe"), work=tmp_path / "w")
    assert not (tmp_path / "w" / "catalogue.json").exists()
    assert len(_list(good, work=tmp_path / "w")) == len(TREE)


def test_a_damaged_class_tar_is_named_with_the_tar_it_lies_in(tmp_path: Path) -> None:
    broken = _tar(TREE)[: 512 + 512 + 100]
    (tmp_path / "train.tar").write_bytes(_tar({"n1.tar": _tar(TREE), "n2.tar": broken}))
    with pytest.raises(Damaged, match=r"train\.tar: .* after cat/1\.jpg"):
        _list(Source(tmp_path / "train.tar"), work=tmp_path / "w")


def test_real_images_in_class_tars(real_data: Path, tmp_path: Path) -> None:
    with tarfile.open(real_data / "imagenet-sample.tar") as tar:
        members = [member for member in tar if member.isreg()][:120]
        found = {Path(member.name).name: tar.extractfile(member) for member in members}
        files = {name: file.read() for name, file in found.items() if file is not None}
    (tmp_path / "train.tar").write_bytes(_tar({"n1.tar": _tar(files)}))
    wanted = {f"n1.tar/{name}": data for name, data in files.items()}
    assert _contents(_list(Source(tmp_path / "train.tar"), work=tmp_path / "w")) == wanted
