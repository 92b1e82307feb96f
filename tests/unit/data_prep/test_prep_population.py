"""The population: places, splits and classes of images, and what is refused on the way."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep import judging
from data_prep.catalogue import Container, Note, Place
from data_prep.columns import is_whole
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

ANY = LabelChoice(None, (), {})
HERE: list[Container] = [{"path": "images.tar", "strip": ""}]


def item(name: str, cls: str = "cat", split: str = TRAIN, pixels: str = "") -> Item:
    return Item(Place(name, 0, 512, 100), split, cls, pixels)


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
        assert not read.refused, "nobody asked for the others"

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
        assert list(read.refused) == [Note("odd", "odd", "odd")]

    def test_notes_keep_their_order_whoever_made_them(self, tmp_path):
        placed = Placed(())

        def items() -> Iterator[Item]:
            for number in range(3):
                placed.refused.append(Note(f"{number}a", "no class", "none"))
                yield item(f"{number}b", "eel")
            yield item("ok")

        placed.items = items()
        choice = LabelChoice(LabelSpace(name="one", classes=("cat",)), (), {})
        read = write_population(tmp_path / "p", placed, HERE, choice)
        assert [note.file for note in read.refused] == ["0a", "0b", "1a", "1b", "2a", "2b"]

    def test_no_object_of_an_image_is_kept(self, tmp_path):
        classes = ["ant", "bee", "cat"]
        few = self._peak(tmp_path, classes * 25_000, ANY)
        assert self._peak(tmp_path, classes * 50_000, ANY) < 1.3 * few

    def test_no_note_of_a_refused_image_is_kept_and_no_process_reads_them(self, tmp_path):
        choice = LabelChoice(LabelSpace(name="one", classes=("c1",)), (), {})
        known = ["c1"] * 9
        few = self._peak(tmp_path, known + ["eel"] * 9_991, choice)
        many = self._peak(tmp_path, known + ["eel"] * 59_991, choice)
        assert many < few + 50_000, "a note takes 300 bytes"
        assert (tmp_path / "p.json").stat().st_size < 1000
        tracemalloc.start()
        read = Population(tmp_path / "p")
        assert (len(read), len(read.refused)) == (9, 59_991)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200_000

    def _peak(self, tmp_path, classes: list[str], choice: LabelChoice) -> int:
        items = (item(f"class/image-{n:07d}.jpg", cls) for n, cls in enumerate(classes))
        tracemalloc.start()
        write_population(tmp_path / "p", Placed(items), HERE, choice)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found


def test_a_process_opens_the_population_once_and_lets_go_of_it(
    make_tree: Callable[..., Path],
    run_build: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Path] = []

    def open_it(path: Path) -> Population:
        opened.append(path)
        return Population(path)

    monkeypatch.setattr(judging, "Population", open_it)
    run_build(make_tree({"cat": 70}))
    assert len(opened) == 1, "three chunks of 32"
    assert judging.open_population.cache_info().currsize == 0, "a mapped file cannot be removed"
