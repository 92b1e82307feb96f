"""Tables on disk, reading by place, and the population: what is written is what is read."""

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.catalogue import Catalogue, CatalogueWriter, Container, Note, Place, Reader
from data_prep.columns import Table, TableWriter, is_whole
from data_prep.population import (
    EVAL,
    PIXELS,
    TRAIN,
    Item,
    LabelChoice,
    Placed,
    Population,
    write_population,
)
from pipeline.data.labels import LabelSpace
from pipeline.spec import Misuse

DTYPE = np.dtype([("name_end", "<u8"), ("size", "<u4"), ("kind", "u1")])
ANY = LabelChoice(None, (), {})
HERE: list[Container] = [{"path": "images.tar", "strip": ""}]

# Every name that a file system or a tar can have: text, and bytes that are no UTF-8.
NAMES = st.one_of(st.text(max_size=40), st.binary(max_size=40)).map(
    lambda raw: (
        raw.decode("utf-8", "surrogateescape")
        if isinstance(raw, bytes)
        else raw.encode("utf-8", "ignore").decode()
    )
)


def write(path: Path, *rows: tuple, **about: object) -> Table:
    with TableWriter(path, DTYPE) as table:
        for row in rows:
            table.add(*row)
        table.about = about
    return Table(path, DTYPE)


def item(name: str, cls: str = "cat", split: str = TRAIN, pixels: str = "") -> Item:
    return Item(Place(name, 0, 512, 100), split, cls, pixels)


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestTable:
    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.lists(st.tuples(NAMES, st.integers(0, 2**32 - 1), st.integers(0, 255)), max_size=30)
    )
    def test_any_rows_and_names_come_back(self, tmp_path_factory, rows):
        table = write(tmp_path_factory.mktemp("t") / "table", *rows, of="x")
        assert len(table) == len(rows) and table.about == {"of": "x"}
        back = [(table.name(i), int(r["size"]), int(r["kind"])) for i, r in enumerate(table.rows)]
        assert back == rows

    def test_rows_that_do_not_fit_their_column_are_an_error_and_no_table(self, tmp_path):
        with pytest.raises(OverflowError), TableWriter(tmp_path / "t", DTYPE) as table:
            table.add("a", 2**32, 0)
        assert not is_whole(tmp_path / "t")

    def test_more_rows_than_are_held_ahead(self, tmp_path):
        count = 150_000
        with TableWriter(tmp_path / "t", DTYPE) as table:
            for number in range(count):
                table.add(f"n{number}", number, number % 7)
            assert len(table) == count
        read = Table(tmp_path / "t", DTYPE)
        assert np.array_equal(read.rows["size"], np.arange(count))
        assert [read.name(i) for i in (0, 65_535, 65_536, count - 1)] == [
            "n0", "n65535", "n65536", "n149999"
        ]  # fmt: skip

    def test_a_writer_that_fails_leaves_no_table_not_even_the_old_one(self, tmp_path):
        write(tmp_path / "t", ("old", 1, 1))
        with pytest.raises(RuntimeError), TableWriter(tmp_path / "t", DTYPE) as table:
            table.add("new", 2, 2)
            raise RuntimeError
        assert not is_whole(tmp_path / "t")
        with pytest.raises(Misuse, match=r"t: the table is missing or unfinished; run the same"):
            Table(tmp_path / "t", DTYPE)

    def test_a_table_is_written_again_over_a_longer_one(self, tmp_path):
        write(tmp_path / "t", *[("long" * 10, 1, 1)] * 9)
        table = write(tmp_path / "t", ("short", 5, 2))
        assert len(table) == 1 and table.name(0) == "short"

    def test_rows_that_are_missing_are_noticed(self, tmp_path):
        write(tmp_path / "t", ("a", 1, 1), ("b", 2, 2))
        os.truncate(tmp_path / "t.rows", DTYPE.itemsize)
        with pytest.raises(Misuse, match="damaged; remove its folder and build again"):
            Table(tmp_path / "t", DTYPE)

    def test_values_are_mapped_to_others_in_the_file(self, tmp_path):
        with TableWriter(tmp_path / "t", DTYPE) as table:
            for number in range(70_000):
                table.add("x", number % 3, 9)
            table.remap("size", np.array([30, 10, 20], np.uint32))
            table.add("last", 7, 9)
        read = Table(tmp_path / "t", DTYPE)
        assert read.rows["size"][:4].tolist() == [30, 10, 20, 30]
        assert read.rows["size"][-2:].tolist() == [30, 7] and set(read.rows["kind"]) == {9}
        assert read.name(70_000) == "last"

    def test_a_table_of_a_million_rows_takes_no_memory_of_its_own(self, tmp_path):
        with (tmp_path / "t.rows").open("wb") as file:
            np.zeros(1_000_000, DTYPE).tofile(file)
        (tmp_path / "t.names").touch()
        (tmp_path / "t.json").write_text('{"rows": 1000000, "about": {}}')
        tracemalloc.start()
        table = Table(tmp_path / "t", DTYPE)
        assert table.name(999_999) == "" and len(table) == 1_000_000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 200_000


class TestReader:
    @pytest.fixture
    def files(self, tmp_path: Path) -> list[Container]:
        """More files than a reader keeps open, and a folder."""
        (tmp_path / "tree" / "cat").mkdir(parents=True)
        (tmp_path / "tree" / "cat" / "1.jpg").write_bytes(b"in a folder")
        containers: list[Container] = [{"path": str(tmp_path / "tree"), "strip": "eval/"}]
        for number in range(400):
            path = tmp_path / f"{number}.tar"
            path.write_bytes(b"....file %03d...." % number)
            containers.append({"path": str(path), "strip": ""})
        return containers

    def test_bytes_are_found_by_place_in_files_and_folders(self, files):
        reader = Reader(files)
        assert reader.read(Place("any", 3, 4, 8)) == b"file 002"
        assert reader.read(Place("eval/cat/1.jpg", 0, 5, 6)) == b"folder"
        reader.close()

    def test_more_containers_than_may_be_open_are_read_all_the_same(self, files):
        reader = Reader(files)
        before = num_open()
        for _ in range(2):
            for number in range(400):
                assert reader.read(Place("", number + 1, 4, 8)) == b"file %03d" % number
        assert num_open() - before <= 300, "processes may have 1,024 files open"
        reader.close()
        assert num_open() == before
        assert reader.read(Place("", 1, 4, 8)) == b"file 000", "a closed reader opens again"
        reader.close()

    def test_what_is_gone_is_an_os_error_that_names_it(self, files, tmp_path):
        (tmp_path / "0.tar").unlink()
        with pytest.raises(OSError, match=r"0\.tar"):
            Reader(files).read(Place("", 1, 0, 1))
        with pytest.raises(OSError, match=r"none\.jpg"):
            Reader(files).read(Place("eval/none.jpg", 0, 0, 1))


class TestCatalogue:
    def test_everything_that_was_found_comes_back(self, tmp_path):
        with CatalogueWriter(tmp_path / "c") as writer:
            tar = writer.container(tmp_path / "a.tar")
            tree = writer.container(tmp_path / "tree", "eval/")
            writer.add("cat/1.jpg", 512, 10, tar)
            writer.add("eval/\udcff.jpg", 0, 3_000_000_000_000, tree)
            writer.folders |= {"cat", "dog"}
            writer.refused.append(Note("link", "link", "a link"))
            writer.finish("abc")
        read = Catalogue(tmp_path / "c")
        assert list(read.places()) == [
            Place("cat/1.jpg", tar, 512, 10),
            Place("eval/\udcff.jpg", tree, 0, 3_000_000_000_000),
        ]
        assert read.containers[tree] == {"path": str(tmp_path / "tree"), "strip": "eval/"}
        assert (read.folders, read.fingerprint) == (["cat", "dog"], "abc")
        assert read.refused == [Note("link", "link", "a link")]


class TestPopulation:
    @pytest.fixture
    def populate(self, tmp_path):
        def make(items, choice: LabelChoice = ANY, **placed) -> Population:
            return write_population(tmp_path / "p", Placed(items, **placed), HERE, choice)

        return make

    def test_a_derived_label_space_is_the_sorted_classes_of_train(self, populate):
        items = [item("3", "dog"), item("1", "ant"), item("2", "cat", EVAL), item("0", "cat")]
        read = populate(items, folders={"bee"})
        assert read.classes == ["ant", "bee", "cat", "dog"], "an empty folder is a class"
        assert [read.classes[c] for c in read.rows["cls"]] == ["dog", "ant", "cat", "cat"]
        assert [read.splits[s] for s in read.rows["split"]] == [TRAIN, TRAIN, EVAL, TRAIN]
        assert [read.name(n) for n in range(4)] == ["3", "1", "2", "0"], "in the order of items"
        assert read.place(1) == Place("1", 0, 512, 100) and read.containers == HERE

    def test_a_layouts_own_classes_keep_their_order_and_those_of_no_image(self, populate):
        read = populate([item("1", "b"), item("2", "a", EVAL)], classes=("b", "none", "a"))
        assert read.classes == ["b", "none", "a"] and read.rows["cls"].tolist() == [0, 2]

    def test_a_published_label_space_numbers_and_refuses_by_name(self, populate):
        space = LabelSpace(name="two", classes=("dog", "cat"), display=("Dog", "Cat"))
        items = [item("1", "cat"), item("2", "eel"), item("3", "dog")]
        read = populate(items, LabelChoice(space, (), {}))
        assert read.classes == ["dog", "cat"] and read.rows["cls"].tolist() == [1, 0]
        assert read.display == ["Dog", "Cat"]
        (note,) = read.refused
        assert (note.file, note.kind) == ("2", "class not in the label space")
        assert "class 'eel' is not in the label space two" in note.reason

    def test_only_the_classes_that_were_asked_for(self, populate):
        items = [item("1", "cat"), item("2", "dog"), item("3", "ant"), item("4", "dog", EVAL)]
        read = populate(items, LabelChoice(None, ("dog", "ant"), {}))
        assert read.classes == ["ant", "dog"] and read.rows["cls"].tolist() == [1, 0, 1]
        assert read.refused == [], "nobody asked for the others"

    def test_asked_classes_keep_the_order_of_the_layouts_label_space(self, populate):
        items = [item("1", "z"), item("2", "a"), item("3", "m")]
        read = populate(items, LabelChoice(None, ("a", "z"), {}), classes=("z", "m", "a"))
        assert read.classes == ["z", "a"] and read.rows["cls"].tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("items", "choice", "said"),
        [
            ([], ANY, "no image with a class; arrange the images as CLASS/name.jpg"),
            ([item("1"), item("2", "dog", EVAL)], ANY, "class 'dog' .* but no train folder"),
            ([item("1")], LabelChoice(None, ("cot",), {}), "no class 'cot'; similar: cat"),
            (
                [item("1"), item("2", "dog", EVAL)],
                LabelChoice(None, ("cat", "dog"), {}),
                "--classes: the source has no class 'dog'",
            ),
        ],
    )
    def test_mistakes_are_named_and_leave_no_population(self, populate, items, choice, said):
        with pytest.raises(Misuse, match=said):
            populate(items, choice)

    def test_a_mistake_removes_the_population_of_before(self, populate, tmp_path):
        populate([item("1")])
        with pytest.raises(Misuse):
            populate([])
        assert not is_whole(tmp_path / "p")

    def test_names_for_people_come_from_the_person_then_from_the_layout(self, populate):
        items = [item("1", "a"), item("2", "b"), item("3", "c")]
        read = populate(items, LabelChoice(None, (), {"a": "mine"}), display={"a": "A", "b": "B"})
        assert read.display == ["mine", "B", "c"]
        assert populate(items).display == []

    def test_raw_pixels_are_told_from_files(self, populate):
        read = populate([item("1", pixels="planes32"), item("2")])
        assert [PIXELS[p] for p in read.rows["pixels"]] == ["planes32", ""]

    def test_what_a_layout_refuses_while_it_yields_is_kept(self, tmp_path):
        placed = Placed(())

        def items() -> Iterator[Item]:
            yield item("1")
            placed.refused.append(Note("odd", "odd", "odd"))

        placed.items = items()
        read = write_population(tmp_path / "p", placed, HERE, ANY)
        assert read.refused == [Note("odd", "odd", "odd")]

    def test_no_object_of_an_image_is_kept(self, tmp_path):
        def peak(count: int) -> int:
            items = (item(f"class/image-{n:07d}.jpg", f"c{n % 10}") for n in range(count))
            tracemalloc.start()
            write_population(tmp_path / "p", Placed(items), HERE, ANY)
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return found

        assert peak(140_000) < 1.3 * peak(70_000)
