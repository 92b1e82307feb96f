"""Images that are the same: who stays, who leaves, and that it is said."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.arrange import Arranged, arrange
from data_prep.catalogue import Container, Place
from data_prep.checking import Checked, check_chunks, key_of, load_checked
from data_prep.clean import GOOD
from data_prep.duplicates import OUT, exact_pairs, near_duplicates
from data_prep.index_tars import index_tars
from data_prep.judging import NOWHERE, VERDICT
from data_prep.options import BuildSpec
from data_prep.population import Item, LabelChoice, Placed, Population, write_population
from pipeline.run.files import write_json
from pipeline.spec import Misuse

MakeImage = Callable[..., bytes]
SPLITS = ["train", "minival", "eval"]
ALL = LabelChoice(None, (), {})


def _beats(one: int, other: int, side: np.ndarray) -> bool:
    """Tell whether row `one` goes before row `other`: eval, then minival, then train; then row."""
    turn = [2, 1, 0]
    return (turn[side[one]], one) < (turn[side[other]], other)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 3)), max_size=40))
def test_exact_twins_are_those_that_agree_in_everything(rows: list[tuple[int, int, int]]) -> None:
    verdicts = np.zeros(len(rows), VERDICT)
    verdicts["twin"] = [twin for twin, _, _ in rows]
    verdicts["size"] = [size for _, size, _ in rows]
    side = np.array([OUT if side == 3 else side for _, _, side in rows], np.uint8)
    pairs = exact_pairs(verdicts, side, SPLITS)
    found = dict(zip(pairs.rows.tolist(), pairs.keepers.tolist(), strict=True))
    for row in range(len(rows)):
        same = [o for o in range(len(rows)) if rows[o][:2] == rows[row][:2] and side[o] != OUT]
        first = [o for o in same if all(o == p or _beats(o, p, side) for p in same)]
        expected = first[0] if side[row] != OUT and first[0] != row else None
        assert found.get(row) == expected
    assert pairs.rows.tolist() == sorted(found)


def test_a_collision_of_half_a_digest_is_no_twin() -> None:
    verdicts = np.zeros(3, VERDICT)
    verdicts["twin"], verdicts["crc32c"] = 7, [1, 2, 1]
    pairs = exact_pairs(verdicts, np.zeros(3, np.uint8), SPLITS)
    assert (pairs.rows.tolist(), pairs.keepers.tolist()) == ([2], [0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2)), min_size=1, max_size=30),
    st.integers(1, 3),
)
def test_near_twins_are_near_one_that_stays(rows: list[tuple[int, int]], distance: int) -> None:
    verdicts = np.zeros(len(rows), VERDICT)
    verdicts["phash"] = [value for value, _ in rows]
    side = np.array([side for _, side in rows], np.uint8)
    pairs = near_duplicates(verdicts, side, SPLITS, distance)
    left = dict(zip(pairs.rows.tolist(), pairs.keepers.tolist(), strict=True))
    stays = [row for row in range(len(rows)) if row not in left]
    for row, keeper in left.items():
        assert keeper in stays
        assert (rows[row][0] ^ rows[keeper][0]).bit_count() <= distance
        assert _beats(keeper, row, side)
    for n, one in enumerate(stays):
        assert all((rows[one][0] ^ rows[o][0]).bit_count() > distance for o in stays[n + 1 :])


def _place(work: Path, files: dict[str, bytes]) -> Population:
    """Write SPLIT/CLASS/NAME files and the population of them."""
    items = []
    for name, data in files.items():
        (work / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "raw" / name).write_bytes(data)
        split, cls, _ = name.split("/")
        items.append(Item(Place(name, 0, 0, len(data)), split, cls))
    containers: list[Container] = [{"path": str(work / "raw"), "strip": ""}]
    return write_population(work / "population", Placed(items), containers, ALL)


def _arrange(work: Path, files: dict[str, bytes], **options: object) -> tuple[Population, Arranged]:
    population = _place(work, files)
    spec = BuildSpec.parse({"name": "test", **options}, "test")
    check_chunks(population, spec, work, 1)
    return population, arrange(population, load_checked(population, work), spec, work)


def _labels(population: Population, found: Arranged, split: str) -> dict[str, tuple[int, ...]]:
    rows = found.order(split)
    names = map(population.name, rows.tolist())
    return dict(zip(names, found.labels_of(population, rows), strict=True))


@pytest.fixture
def twins(encode: MakeImage) -> dict[str, bytes]:
    """One image under three classes and twice under one; another in train and eval."""
    same, shared = encode(1), encode(2)
    return {
        "train/cat/0.jpg": same,
        "train/dog/0.jpg": same,
        "train/dog/1.jpg": same,
        "train/cat/2.jpg": encode(3),
        "train/dog/2.jpg": encode(4),
        "train/fox/0.jpg": shared,
        "train/fox/1.jpg": encode(5),
        "eval/fox/0.jpg": shared,
        "eval/fox/1.jpg": encode(6),
    }


def test_kept_duplicates_are_only_counted(tmp_path: Path, twins: dict[str, bytes]) -> None:
    population, found = _arrange(tmp_path, twins)
    assert len(_labels(population, found, "train")) == 7
    assert (found.merged, found.leaks, found.eval_twins) == (0, 0, 1)
    assert list(found.dropped()) == []


def test_dropped_duplicates_leave_the_first_and_are_listed(
    tmp_path: Path, twins: dict[str, bytes]
) -> None:
    population, found = _arrange(tmp_path, twins, duplicates="drop")
    assert _labels(population, found, "train") == {
        "train/cat/0.jpg": (0,),
        "train/cat/2.jpg": (0,),
        "train/dog/2.jpg": (1,),
        "train/fox/1.jpg": (2,),
    }
    assert set(_labels(population, found, "eval")) == {"eval/fox/0.jpg", "eval/fox/1.jpg"}
    assert (found.merged, found.leaks, found.eval_twins) == (0, 1, 0)
    assert [note.file for note in found.dropped()] == [
        "train/dog/0.jpg",
        "train/dog/1.jpg",
        "train/fox/0.jpg",
    ]
    reasons = [note.reason for note in found.dropped()]
    assert reasons[0] == "the same bytes as 'train/cat/0.jpg' of class cat"
    assert reasons[2] == "the same bytes as 'eval/fox/0.jpg' of split eval"


def test_merged_duplicates_are_one_sample_with_all_labels(
    tmp_path: Path, twins: dict[str, bytes]
) -> None:
    population, found = _arrange(tmp_path, twins, duplicates="merge")
    assert _labels(population, found, "train") == {
        "train/cat/0.jpg": (0, 1),
        "train/cat/2.jpg": (0,),
        "train/dog/2.jpg": (1,),
        "train/fox/1.jpg": (2,),
    }
    assert found.class_counts("train") == (2, 2, 1)
    assert (found.merged, found.leaks) == (2, 1)
    assert {note.kind for note in found.dropped()} == {"merged duplicate", "held out elsewhere"}


def test_labels_of_train_are_not_merged_into_eval(tmp_path: Path, encode: MakeImage) -> None:
    same = encode(1)
    files = {
        f"train/{cls}/{n}.jpg": encode(10 * n + k)
        for k, cls in enumerate(("cat", "dog"))
        for n in (1, 2)
    }
    files |= {"train/cat/0.jpg": same, "eval/dog/0.jpg": same}
    population, found = _arrange(tmp_path, files, duplicates="merge")
    assert _labels(population, found, "eval") == {"eval/dog/0.jpg": (1,)}
    assert "train/cat/0.jpg" not in _labels(population, found, "train")


def test_merging_before_a_holdout_leaves_no_twin_across(tmp_path: Path, encode: MakeImage) -> None:
    files = {f"train/cat/{n:02}.jpg": encode(n // 2) for n in range(40)}
    _, kept = _arrange(tmp_path, files, holdouts={"eval": {"fraction": 0.5}})
    assert kept.eval_twins > 0
    _, merged = _arrange(tmp_path, files, holdouts={"eval": {"fraction": 0.5}}, duplicates="merge")
    assert (merged.eval_twins, merged.merged) == (0, 20)
    assert len(merged.order("eval")) == 10


def _look_alikes(encode: MakeImage) -> dict[str, bytes]:
    """Return pictures that differ, and one of them again with other bytes (a comment)."""
    files = {f"train/cat/{n}.jpg": encode(n, width=64, height=64) for n in range(4)}
    again = files["train/cat/2.jpg"]
    files["eval/cat/again.jpg"] = again[:2] + b"\xff\xfe\x00\x06abcd" + again[2:]
    return files


def test_near_duplicates_are_noted_or_dropped(tmp_path: Path, encode: MakeImage) -> None:
    files = _look_alikes(encode)
    population, found = _arrange(tmp_path, files, near_duplicates=2)
    assert len(_labels(population, found, "train")) == 4
    assert [note.file for note in found.noted()] == ["train/cat/2.jpg"]
    assert found.leaks == 0
    population, found = _arrange(tmp_path, files, near_duplicates=2, duplicates="drop")
    assert len(_labels(population, found, "train")) == 3
    (note,) = found.dropped()
    assert (note.file, note.kind, found.leaks) == ("train/cat/2.jpg", "near duplicate", 1)
    assert "looks like 'eval/cat/again.jpg' of split eval (0 of 64 bits differ)" in note.reason


def test_near_duplicates_need_decoded_images() -> None:
    options = {"name": "x", "near_duplicates": 2, "clean": {"decode": "header"}}
    with pytest.raises(Misuse, match="--near-duplicates needs --check full"):
        BuildSpec.parse(options, "test")


def _other_set(folder: Path, images: list[bytes]) -> Path:
    """Write and index a shard of another data set."""
    folder.mkdir()
    with tarfile.open(folder / "val-0000.tar", "w") as tar:
        for number, image in enumerate(images):
            for suffix, data in (("jpg", image), ("cls", b"0")):
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    index_tars(folder, {"eval": "val-*.tar"}, ("only",), "other", 1)
    return folder


def test_what_another_set_has_is_dropped_and_its_key_is_named(
    tmp_path: Path, encode: MakeImage
) -> None:
    other = _other_set(tmp_path / "other", [encode(90), encode(2), encode(91)])
    files = {f"train/cat/{n}.jpg": encode(n) for n in range(5)}
    population, found = _arrange(tmp_path, files, against=[str(other)])
    assert "train/cat/2.jpg" not in _labels(population, found, "train")
    assert len(found.order("train")) == 4
    (note,) = found.dropped()
    assert note.file == "train/cat/2.jpg"
    assert note.reason == "the same bytes as 0001 of split eval of data set 'other'"


def test_equal_size_and_crc_alone_drop_nothing(tmp_path: Path, encode: MakeImage) -> None:
    """A forged index that gives another image our size and crc32c does not take ours out."""
    mine, theirs = encode(1), encode(2)
    theirs = theirs + bytes(len(mine) - len(theirs)) if len(theirs) < len(mine) else theirs
    other = _other_set(tmp_path / "other", [theirs])
    population = _place(tmp_path, {"train/cat/0.jpg": mine, "train/cat/1.jpg": encode(7)})
    spec = BuildSpec.parse({"name": "x", "against": [str(other)]}, "test")
    check_chunks(population, spec, tmp_path, 1)
    checked = load_checked(population, tmp_path)
    verdicts = np.array(checked.verdicts)
    entries = np.load(other / "val-0000.idx.npy")
    verdicts["size"][0], verdicts["crc32c"][0] = entries["size"][0], entries["crc32c"][0]
    checked.verdicts = verdicts
    assert len(arrange(population, checked, spec, tmp_path).order("train")) == 2


def test_another_set_that_changed_or_is_encoded_otherwise_is_refused(
    tmp_path: Path, encode: MakeImage
) -> None:
    other = _other_set(tmp_path / "other", [encode(90)])
    files = {"train/cat/0.jpg": encode(1)}
    against = [{"folder": str(other), "manifest": "0" * 64, "splits": ["eval"]}]
    with pytest.raises(Misuse, match="the data set there is another one since this build began"):
        _arrange(tmp_path, files, against=against)
    resized = {"kind": "resize", "short_px": 8}
    with pytest.raises(Misuse, match="so equal images differ in bytes"):
        _arrange(tmp_path, files, against=[str(other)], transcode=resized)
    turned = {"orientation": "apply"}
    with pytest.raises(Misuse, match=r"stored as .*'orientation': 'keep'.*'apply'.*bytes"):
        _arrange(tmp_path, files, against=[str(other)], clean=turned)
    with pytest.raises(Misuse, match="no such folder"):
        _arrange(tmp_path, files, against=[str(tmp_path / "none")])


def test_an_image_cannot_leave_twice(tmp_path: Path, encode: MakeImage) -> None:
    both = [_other_set(tmp_path / name, [encode(0), encode(0)]) for name in ("one", "two")]
    files = {
        "train/cat/0.jpg": encode(0),
        "train/cat/1.jpg": encode(0),
        "train/cat/2.jpg": encode(5),
    }
    _, found = _arrange(tmp_path, files, against=[str(b) for b in both], duplicates="drop")
    assert sorted(note.file for note in found.dropped()) == ["train/cat/0.jpg", "train/cat/1.jpg"]
    assert (len(found.order("train")), found.leaks) == (1, 0)


def test_duplicates_do_not_depend_on_numbers_of_many(tmp_path: Path) -> None:
    """A hundred thousand rows, half of them twins, over the blocks of the search."""
    num = 100_000
    items = [Item(Place(f"c/{n}", 0, 0, 1), "train", "c") for n in range(num)]
    containers: list[Container] = [{"path": str(tmp_path), "strip": ""}]
    population = write_population(tmp_path / "population", Placed(items), containers, ALL)
    verdicts = np.zeros(num, VERDICT)
    verdicts["state"], verdicts["spool"], verdicts["size"] = GOOD, NOWHERE, 1
    verdicts["twin"] = np.random.default_rng(0).permutation(np.arange(num) // 2)
    spec = BuildSpec.parse({"name": "x", "duplicates": "drop"}, "test")
    key = key_of(population, spec, tmp_path)
    np.save(tmp_path / "verdicts.npy", verdicts)
    write_json(tmp_path / "verdicts.json", {"key": key, "rows": num})
    found = arrange(population, Checked(tmp_path, key), spec, tmp_path)
    assert len(found.order("train")) == num // 2 == sum(1 for _ in found.dropped())
    assert len(np.unique(verdicts["twin"][found.order("train")])) == num // 2
