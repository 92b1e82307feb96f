"""Each transfer set is read from archives of exactly the official layout."""

from pathlib import Path

import pytest

from data_prep.layouts import LAYOUTS
from data_prep.population import LabelChoice, write_population
from pipeline.spec import Misuse
from tests.unit.data_prep.official_archives import (
    OPTIONS,
    SETS,
    Found,
    birdsnap,
    change,
    flowers,
    food,
    pets,
    unpack,
    write,
)

EXPECTED: dict[str, list[tuple[str, str, str]]] = {
    "flowers": [
        ("train", "pink primrose", "image_00003.jpg"),
        ("train", "passion flower", "image_00001.jpg"),
        ("minival", "passion flower", "image_00002.jpg"),
        ("eval", "blackberry lily", "image_00004.jpg"),
        ("eval", "hard-leaved pocket orchid", "image_00006.jpg"),
        ("eval", "pink primrose", "image_00005.jpg"),
    ],
    "pets": [
        ("train", "Abyssinian", "Abyssinian_100.jpg"),
        ("train", "american_bulldog", "american_bulldog_1.jpg"),
        ("train", "Birman", "Birman_7.jpg"),
        ("eval", "american_bulldog", "american_bulldog_2.jpg"),
        ("eval", "Birman", "Birman_8.jpg"),
    ],
    "cars": [
        ("train", "AM General Hummer SUV 2000", "cars_train/00001.jpg"),
        ("train", "Acura RL Sedan 2012", "cars_train/00002.jpg"),
        ("eval", "Acura RL Sedan 2012", "cars_test/00001.jpg"),
        ("eval", "AM General Hummer SUV 2000", "cars_test/00002.jpg"),
    ],
    "cars_whole": [
        ("train", "Acura RL Sedan 2012", "car_ims/000001.jpg"),
        ("train", "AM General Hummer SUV 2000", "car_ims/000002.jpg"),
        ("eval", "Acura RL Sedan 2012", "car_ims/000003.jpg"),
    ],
    "aircraft": [
        ("train", "707-320", "images/1025794.jpg"),
        ("minival", "Cessna 172", "images/0034309.jpg"),
        ("eval", "F-16A/B", "images/34.jpg"),
        ("eval", "Cessna 172", "images/0056978.jpg"),
    ],
    "food": [
        ("train", "apple_pie", "apple_pie/1005649.jpg"),
        ("train", "waffles", "waffles/7.jpg"),
        ("eval", "apple_pie", "apple_pie/1011328.jpg"),
        ("eval", "waffles", "waffles/8.jpg"),
    ],
    "birdsnap": [
        ("train", "Acadian Flycatcher", "Acadian_Flycatcher/1.jpg"),
        ("eval", "Acadian Flycatcher", "Acadian_Flycatcher/2.jpg"),
        ("train", "Brant", "Brant/3.jpg"),
    ],
}
"""Split, class and the end of the path of every image, in order."""


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", ["archives", "unpacked"])
def test_official_set(name: str, form: str, tmp_path: Path) -> None:
    (layout, make), expected = SETS[name], EXPECTED[name]
    make_source = write if form == "archives" else unpack
    found = Found(make_source(tmp_path / "source", make()), layout)
    assert [row[:2] for row in found.rows()] == [row[:2] for row in expected]
    for (_, _, data), (_, _, path) in zip(found.rows(), expected, strict=True):
        assert data.startswith(b"pixels of ") and data.endswith(path.encode())
    assert found.placed.refused == []
    assert not any(item.pixels for item in found.items)


@pytest.mark.parametrize("name", ["aircraft", "food"])
def test_the_archive_itself_is_a_source(name: str, tmp_path: Path) -> None:
    (layout, make), expected = SETS[name], EXPECTED[name]
    (archive,) = make()
    found = Found(write(tmp_path / "source", make()) / archive, layout)
    assert [row[:2] for row in found.rows()] == [row[:2] for row in expected]


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("pets", ("Abyssinian", "american_bulldog", "Birman")),
        ("cars", ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")),
        ("aircraft", ("707-320", "Cessna 172", "F-16A/B")),
        ("birdsnap", ("Acadian Flycatcher", "Brant")),
    ],
)
def test_classes_keep_their_official_order(
    name: str, classes: tuple[str, ...], tmp_path: Path
) -> None:
    (layout, make), expected = SETS[name], EXPECTED[name]
    found = Found(write(tmp_path / "source", make()), layout)
    population = write_population(
        tmp_path / "population",
        LAYOUTS[layout](found.catalogue, found.reader, OPTIONS),
        found.catalogue.containers,
        LabelChoice(None, (), {}),
    )
    assert tuple(population.classes) == classes
    numbers = [classes.index(cls) for _, cls, _ in expected]
    assert population.rows["cls"].tolist() == numbers


def test_flowers_have_102_classes(tmp_path: Path) -> None:
    classes = Found(write(tmp_path / "source", flowers()), "flowers102").placed.classes
    assert classes is not None and len(classes) == len(set(classes)) == 102
    assert classes[0] == "pink primrose" and classes[50] == "petunia"  # the page of the set


MISSING = [(name, archive) for name, (_, make) in SETS.items() for archive in make()]


@pytest.mark.parametrize(("name", "archive"), MISSING)
def test_a_missing_archive_is_named(name: str, archive: str, tmp_path: Path) -> None:
    layout, make = SETS[name]
    archives = make()
    del archives[archive]
    source = write(tmp_path / "source", archives)
    (source / "notes.txt").write_text("what else lies there")
    with pytest.raises(Misuse, match=f"^--layout {layout}: there is no .*notes.txt") as error:
        Found(source, layout)
    assert archive == "download.tar" or archive in str(error.value)


@pytest.mark.parametrize("name", [name for name in SETS if name != "birdsnap"])
def test_a_missing_image_is_named(name: str, tmp_path: Path) -> None:
    (layout, make), expected = SETS[name], EXPECTED[name]
    archives = make()
    (path,) = [
        path
        for files in archives.values()
        if isinstance(files, dict)
        for path in files
        if path.endswith(expected[0][2])
    ]
    source = write(tmp_path / "source", change(archives, path, None))
    with pytest.raises(Misuse, match=r"1 images of its lists missing") as error:
        Found(source, layout)
    assert path.rpartition("/")[2] in str(error.value)


def test_missing_birds_are_refused_by_name(tmp_path: Path) -> None:
    archives = change(birdsnap(), "download/images/Acadian_Flycatcher/2.jpg", None)
    found = Found(write(tmp_path / "source", archives), "birdsnap")
    assert [item.split for item in found.items] == ["train", "train"]
    (note,) = found.placed.refused
    assert note[:2] == ("images/Acadian_Flycatcher/2.jpg", "missing image")
    assert "gone from the web" in note.reason


def test_images_that_no_list_names_are_refused_by_name(tmp_path: Path) -> None:
    archives = pets()
    assert isinstance(archives["images.tar.gz"], dict)
    archives["images.tar.gz"]["images/Birman_9.jpg"] = b"more"
    found = Found(write(tmp_path / "source", archives), "pets")
    (note,) = found.placed.refused
    assert note.file.endswith("images/Birman_9.jpg") and note.kind == "not in the lists"


def test_an_archive_beside_what_was_unpacked_is_ambiguous(tmp_path: Path) -> None:
    source = unpack(write(tmp_path / "source", food()), food())
    with pytest.raises(Misuse, match="stands twice in the source") as error:
        Found(source, "food101")
    assert "food-101.tar.gz/food-101/images" in str(error.value)


def test_lists_that_stand_twice_may_agree(tmp_path: Path) -> None:
    archives = birdsnap()
    source = write(tmp_path / "source", archives)
    assert isinstance(archives["birdsnap.tgz"], dict)
    unpack(source, archives["birdsnap.tgz"])  # as its script needs it
    assert len(Found(source, "birdsnap").items) == 3
    (source / "birdsnap" / "test_images.txt").write_text("path\n")
    with pytest.raises(Misuse, match=r"test_images\.txt stands twice"):
        Found(source, "birdsnap")


def test_another_set_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source", food())
    with pytest.raises(Misuse, match="it needs images.tar.gz and annotations.tar.gz") as error:
        Found(source, "pets")
    assert "which has food-101.tar.gz;" in str(error.value)
