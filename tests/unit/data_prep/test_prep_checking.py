"""The first pass: judged once, kept over restarts, the same from any number of workers."""

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from data_prep.catalogue import CatalogueWriter, Container, Place, Reader
from data_prep.checking import Checked, check_chunks, chunk_rows, load_checked, num_chunks, stored
from data_prep.clean import GOOD, REJECTED, REPAIRED
from data_prep.failure import Failed
from data_prep.judging import MAX_IMAGE_BYTES, NOWHERE, SUFFIXES
from data_prep.options import BuildSpec
from data_prep.population import Item, LabelChoice, Placed, Population, write_population
from pipeline.spec import Misuse

MakeImage = Callable[..., bytes]
SPEC = BuildSpec(name="test")


def _populate(
    work: Path, files: Mapping[str, bytes], in_one: bool = False, pixels: str = ""
) -> Population:
    """Return a population of files in a folder, or of slices of one archive."""
    source = work / "source"
    source.mkdir(exist_ok=True)
    items, offset = [], 0
    for name, data in files.items():
        place = Place(name, 0, offset if in_one else 0, len(data))
        items.append(Item(place, "train", "only", pixels))
        offset += len(data)
        if not in_one:
            (source / name).write_bytes(data)
    if in_one:
        source = source / "archive.tar"
        source.write_bytes(b"".join(files.values()))
    containers: list[Container] = [{"path": str(source), "strip": ""}]
    return write_population(
        work / "population", Placed(items), containers, LabelChoice(None, (), {})
    )


def _check(population: Population, work: Path, spec: BuildSpec = SPEC, workers: int = 1) -> Checked:
    check_chunks(population, spec, work, workers)
    return load_checked(population, work)


def _files(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (work / "check").iterdir()}


def _times(work: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (work / "check").glob("*.json")}


@pytest.fixture
def mixed(encode: MakeImage) -> dict[str, bytes]:
    """Good, repaired and rejected images, in no order of kinds."""
    good = {f"{n:03d}.jpg": encode(n) for n in range(96)}
    odd = {
        "100.jpg": encode(100, "PNG", mode="RGBA"),
        "050a.jpg": encode(101, width=200, height=200)[:3000],
        "010a.jpg": b"",
        "020a.jpg": encode(102, "PNG"),
        "030a.jpg": b"\xff\xd8\xff no picture at all" * 9,
    }
    return dict(sorted((good | odd).items()))


@pytest.mark.parametrize("in_one", [False, True])
def test_verdicts_tell_what_is_stored(
    tmp_path: Path, mixed: dict[str, bytes], in_one: bool
) -> None:
    population = _populate(tmp_path, mixed, in_one)
    checked = _check(population, tmp_path)
    reader = Reader(population.containers)
    states = {}
    for row, name in enumerate(mixed):
        verdict = checked.verdicts[row]
        states[name] = int(verdict["state"])
        if verdict["state"] == REJECTED:
            assert (verdict["size"], verdict["spool"]) == (0, NOWHERE)
            continue
        image = stored(reader, population, checked, row)
        assert len(image) == verdict["size"]
        assert google_crc32c.value(image) == verdict["crc32c"]
        assert int.from_bytes(hashlib.sha256(image).digest()[:8], "big") == verdict["twin"]
        assert Image.open(io.BytesIO(image)).size == (verdict["width"], verdict["height"])
        assert (image == mixed[name]) == (verdict["state"] == GOOD) == (verdict["spool"] == NOWHERE)
        assert SUFFIXES[verdict["suffix"]] == "jpg"
    odd = {name: state for name, state in states.items() if state != GOOD}
    assert odd == {
        "010a.jpg": REJECTED,
        "020a.jpg": REPAIRED,
        "030a.jpg": REJECTED,
        "050a.jpg": REJECTED,
        "100.jpg": REPAIRED,
    }
    reader.close()
    checked.close()


def test_notes_come_in_the_order_of_rows(tmp_path: Path, mixed: dict[str, bytes]) -> None:
    population = _populate(tmp_path, mixed)
    names = [population.name(note.row) for note in _check(population, tmp_path).notes()]
    assert names == sorted({"010a.jpg", "020a.jpg", "030a.jpg", "050a.jpg", "100.jpg"})


def test_raw_pixels_are_stored_without_loss(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)
    files = {f"{n}.png": planes[n].tobytes() for n in range(5)}
    population = _populate(tmp_path, files, in_one=True, pixels="planes32")
    checked = _check(population, tmp_path)
    reader = Reader(population.containers)
    for row in range(5):
        image = Image.open(io.BytesIO(stored(reader, population, checked, row)))
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), planes[row])
        assert SUFFIXES[checked.verdicts["suffix"][row]] == "png"


@pytest.mark.parametrize("kind", ["none", "resize"])
def test_images_that_are_not_decoded_may_be_any_bytes(
    tmp_path: Path, encode: MakeImage, kind: str
) -> None:
    """--check header passes what looks whole; what cannot be resized then is rejected by name."""
    whole = encode(1, width=64, height=48)
    scan = whole.index(b"\xff\xda")
    broken = whole[: scan + 20] + b"\xff\xd9"
    population = _populate(tmp_path, {"0.jpg": whole, "1.jpg": broken})
    resize = {"kind": kind, "short_px": 8 if kind == "resize" else None}
    values = {"name": "test", "clean": {"decode": "header"}, "transcode": resize}
    checked = _check(population, tmp_path, BuildSpec.parse(values, "test"))
    assert checked.verdicts["state"][0] == GOOD
    side = 8 if kind == "resize" else 48
    assert checked.verdicts["height"][0] == side
    if kind == "none":
        assert checked.verdicts["size"].tolist() == [len(whole), len(broken)]


def test_elements_and_workers_leave_the_same_files(tmp_path: Path, mixed: dict[str, bytes]) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    for work in (one, many):
        work.mkdir()
    check_chunks(_populate(one, mixed), SPEC, one, workers=1)
    source = _populate(one, mixed)
    for element in (2, 0, 1):
        (many / "check").mkdir(exist_ok=True)
        before = set(_files(many))
        check_chunks(source, SPEC, many, workers=1 + element, element=(element, 3))
        its = {int(name[:6]) for name in set(_files(many)) - before}
        assert its == set(range(element, num_chunks(len(source)), 3))
    assert _files(one) == _files(many)


def test_finished_chunks_are_kept(
    tmp_path: Path, mixed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    population = _populate(tmp_path, mixed)
    _check(population, tmp_path)
    before, files = _times(tmp_path), _files(tmp_path)
    assert sorted(before) == [f"{n:06d}.json" for n in range(4)]
    (tmp_path / "check/000001.json").unlink()
    _check(population, tmp_path, workers=2)
    assert "3 of 4 chunks were checked before and kept" in capsys.readouterr().out
    after = _times(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"000001.json"}
    assert _files(tmp_path) == files


@pytest.mark.parametrize("suffix", ["npy", "bin", "json"])
@pytest.mark.parametrize("fault", ["removed", "cut", "torn"])
def test_a_damaged_chunk_is_checked_again(
    tmp_path: Path, mixed: dict[str, bytes], suffix: str, fault: str
) -> None:
    population = _populate(tmp_path, mixed)
    _check(population, tmp_path)
    files = _files(tmp_path)
    path = tmp_path / f"check/000000.{suffix}"
    data = path.read_bytes()
    torn = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    path.write_bytes(data[:-1] if fault == "cut" or suffix == "bin" else torn)
    if fault == "removed":
        path.unlink()
    check_chunks(population, SPEC, tmp_path, 1)
    assert _files(tmp_path) == files


def test_bytes_that_changed_in_a_spool_are_not_passed_on(
    tmp_path: Path, mixed: dict[str, bytes]
) -> None:
    population = _populate(tmp_path, mixed)
    checked = _check(population, tmp_path)
    row = list(mixed).index("020a.jpg")
    spool = tmp_path / "check/000000.bin"
    data = bytearray(spool.read_bytes())
    data[len(data) // 2] ^= 1
    spool.write_bytes(data)
    with pytest.raises(Failed, match=rf"000000\.bin: damaged since it was written \(row {row}\)"):
        stored(Reader(population.containers), population, checked, row)
    checked.close()


def test_other_inputs_or_rules_are_checked_again_but_not_other_choices(
    tmp_path: Path, mixed: dict[str, bytes]
) -> None:
    population = _populate(tmp_path, mixed)
    key = _check(population, tmp_path).key
    seeded = BuildSpec(name="other", seed=5, shard_samples=3)
    assert _check(population, tmp_path, seeded).key == key
    near = BuildSpec(name="test", near_duplicates=2)
    assert _check(population, tmp_path, near).key != key
    for print_of_source in ("a", "b"):
        with CatalogueWriter(tmp_path / "catalogue") as catalogue:
            catalogue.finish(print_of_source)
        changed = _check(population, tmp_path).key
        assert changed != key
        key = changed
    renamed = {f"x{name}": data for name, data in mixed.items()}
    assert _check(_populate(tmp_path, renamed), tmp_path).key != key


def test_missing_and_mixed_chunks_are_named(tmp_path: Path, mixed: dict[str, bytes]) -> None:
    population = _populate(tmp_path, mixed)
    with pytest.raises(Misuse, match="chunk 0 of 4 is not checked yet; run stage check again"):
        load_checked(population, tmp_path)
    check_chunks(population, SPEC, tmp_path, 1, element=(0, 2))
    with pytest.raises(Misuse, match="chunk 1 of 4 is not checked"):
        load_checked(population, tmp_path)
    near = BuildSpec(name="test", near_duplicates=2)
    check_chunks(population, near, tmp_path, 1, element=(1, 2))
    with pytest.raises(Misuse, match="chunk 1 of 4 is not checked"):
        load_checked(population, tmp_path)


def test_hashes_of_pictures_are_taken_where_they_are_asked_for(
    tmp_path: Path, mixed: dict[str, bytes]
) -> None:
    population = _populate(tmp_path, mixed)
    assert not _check(population, tmp_path).verdicts["phash"].any()
    hashes = _check(population, tmp_path, BuildSpec(name="test", near_duplicates=2)).verdicts
    assert len(np.unique(hashes["phash"][hashes["state"] != REJECTED])) > 90


def test_a_file_that_is_gone_is_rejected_by_name(tmp_path: Path, mixed: dict[str, bytes]) -> None:
    population = _populate(tmp_path, mixed)
    (tmp_path / "source/003.jpg").unlink()
    checked = _check(population, tmp_path)
    gone = next(note for note in checked.notes() if population.name(note.row) == "003.jpg")
    assert gone[1:] == ("cannot be read", "cannot be read: No such file or directory")


def test_a_file_that_was_cut_is_rejected(tmp_path: Path, mixed: dict[str, bytes]) -> None:
    population = _populate(tmp_path, mixed)
    (tmp_path / "source/003.jpg").write_bytes(mixed["003.jpg"][:-5])
    notes = {population.name(n.row): n.reason for n in _check(population, tmp_path).notes()}
    size = len(mixed["003.jpg"])
    assert notes["003.jpg"].startswith(f"{size - 5} of {size} bytes are left")


def test_an_archive_that_is_gone_ends_the_pass_and_rejects_nothing(
    tmp_path: Path, mixed: dict[str, bytes]
) -> None:
    population = _populate(tmp_path, mixed, in_one=True)
    (tmp_path / "source/archive.tar").rename(tmp_path / "away")
    with pytest.raises(Failed, match=r"archive\.tar: '000\.jpg' cannot be read: No such file"):
        check_chunks(population, SPEC, tmp_path, 1)
    assert _times(tmp_path) == {}
    os.rename(tmp_path / "away", tmp_path / "source/archive.tar")
    assert (_check(population, tmp_path).verdicts["state"] == GOOD).sum() == 96


def test_a_folder_that_is_gone_ends_the_pass(tmp_path: Path, mixed: dict[str, bytes]) -> None:
    population = _populate(tmp_path, mixed)
    (tmp_path / "source").rename(tmp_path / "away")
    with pytest.raises(Failed, match="cannot be read"):
        check_chunks(population, SPEC, tmp_path, 1)


def test_a_giant_is_rejected_unread(tmp_path: Path) -> None:
    with (tmp_path / "giant.tar").open("wb") as file:
        file.truncate(3 << 30)
    items = [Item(Place("giant.jpg", 0, 0, (3 << 30) - 1), "train", "only")]
    containers: list[Container] = [{"path": str(tmp_path / "giant.tar"), "strip": ""}]
    choice = LabelChoice(None, (), {})
    population = write_population(tmp_path / "population", Placed(items), containers, choice)
    (note,) = _check(population, tmp_path).notes()
    assert note == (0, "too large", f"{(3 << 30) - 1} bytes, over {MAX_IMAGE_BYTES}")


@pytest.mark.parametrize(
    ("images", "rows"), [(1, 32), (800, 32), (100_000, 50), (14_000_000, 4096)]
)
def test_chunks_are_a_few_thousand_at_most(images: int, rows: int) -> None:
    assert chunk_rows(images) == rows
    assert num_chunks(images) * rows >= images > (num_chunks(images) - 1) * rows
