"""Tables on disk, and reading by place: what is written is what is read."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.catalogue import Catalogue, CatalogueWriter, Container, Note, Place, Reader
from data_prep.columns import Table, TableWriter, is_whole
from pipeline.spec import Misuse

DTYPE = np.dtype([("name_end", "<u8"), ("size", "<u4"), ("kind", "u1")])

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
        message = r"t\.rows: has 13 bytes, 26 were written: .*run the same command again.* remove"
        with pytest.raises(Misuse, match=message):
            Table(tmp_path / "t", DTYPE)

    @pytest.mark.parametrize("suffix", ["rows", "names", "odd"])
    @pytest.mark.parametrize("cut", [5, None])
    def test_a_cut_or_missing_file_is_named_and_the_table_counts_as_none(
        self, tmp_path, suffix, cut
    ):
        with TableWriter(tmp_path / "t", DTYPE, ("odd",)) as table:
            table.add("name-1", 1, 1)
            table.add_line("odd", ["a", "b"])
        assert is_whole(tmp_path / "t")
        file = tmp_path / f"t.{suffix}"
        if cut is None:
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size - cut)
        assert not is_whole(tmp_path / "t")
        with pytest.raises(Misuse, match=rf"t\.{suffix}: .* or remove the folder {tmp_path}"):
            Table(tmp_path / "t", DTYPE)

    def test_a_table_of_an_older_version_counts_as_none(self, tmp_path):
        write(tmp_path / "t", ("a", 1, 1))
        (tmp_path / "t.json").write_text('{"rows": 1, "about": {}}')
        assert not is_whole(tmp_path / "t")
        with pytest.raises(Misuse, match="unfinished; run the same command again"):
            Table(tmp_path / "t", DTYPE)

    def test_lists_come_back_line_by_line_and_stay_out_of_the_json(self, tmp_path):
        values = [["\udcff\n", number] for number in range(1000)]
        with TableWriter(tmp_path / "t", DTYPE, ("odd", "empty")) as table:
            for value in values:
                table.add_line("odd", value)
        read = Table(tmp_path / "t", DTYPE)
        assert list(read.lines("odd")) == values == list(read.lines("odd"))
        assert (read.num_lines("odd"), read.num_lines("empty")) == (1000, 0)
        assert not list(read.lines("empty"))
        assert (tmp_path / "t.json").stat().st_size < 300

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
        sizes = {"rows": 1_000_000 * DTYPE.itemsize, "names": 0}
        values = {"rows": 1_000_000, "lines": {}, "bytes": sizes, "about": {}}
        (tmp_path / "t.json").write_text(json.dumps(values))
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
            writer.refuse([Note("link", "link", "a link")])
            writer.finish("abc")
        read = Catalogue(tmp_path / "c")
        assert list(read.places()) == [
            Place("cat/1.jpg", tar, 512, 10),
            Place("eval/\udcff.jpg", tree, 0, 3_000_000_000_000),
        ]
        assert read.containers[tree] == {"path": str(tmp_path / "tree"), "strip": "eval/"}
        assert (read.folders, read.fingerprint) == (["cat", "dog"], "abc")
        assert list(read.refused) == [Note("link", "link", "a link")]

    def test_notes_and_folders_are_not_read_with_the_catalogue(self, tmp_path):
        with CatalogueWriter(tmp_path / "c") as writer:
            writer.folders |= {f"folder-{number}" for number in range(20_000)}
            writer.refuse(Note(f"link-{number}", "link", "a link") for number in range(20_000))
            assert writer.num_noted == 40_000
            writer.finish("abc")
        tracemalloc.start()
        read = Catalogue(tmp_path / "c")
        count = sum(note.kind == "link" for note in read.refused)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (count, len(read.refused), len(read.folders)) == (20_000, 20_000, 20_000)
        assert peak < 300_000
