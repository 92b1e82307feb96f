"""Labels, lists and options that do not fit a transfer set are refused before any work."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.layouts import LAYOUTS, LayoutOptions, official
from pipeline.spec import Misuse
from tests.unit.data_prep.official_archives import (
    OPTIONS,
    SETS,
    Found,
    annotations_of,
    change,
    food,
    lines_of,
    mat,
    unpack,
    write,
)


def _pets_list(*lines: str) -> bytes:
    return lines_of("Abyssinian_100 1 1 1", "american_bulldog_1 2 2 1", "Birman_7 3 1 2", *lines)


FOOD, DATA = "food-101/meta", "fgvc-aircraft-2013b/data"
BAD: dict[str, tuple[str, str, bytes, str]] = {
    "flowers: label 0": ("flowers", "imagelabels.mat", mat(labels=[[0] * 6]), "label 0, expect"),
    "flowers: label 103": (
        "flowers", "imagelabels.mat", mat(labels=[[103] * 6]), "label 103, expected 1 to 102",
    ),
    "flowers: fewer labels": (
        "flowers", "imagelabels.mat", mat(labels=[[1] * 5]), "tstid has image 6, expected 1 to 5",
    ),
    "flowers: more labels": (
        "flowers", "imagelabels.mat", mat(labels=[[1] * 7]), "labels 7 images.*archive has 6",
    ),
    "flowers: no image of that number": (
        "flowers", "setid.mat", mat(trnid=[[7]], valid=[[2]], tstid=[[3]]), "trnid has image 7",
    ),
    "flowers: an image in two splits": (
        "flowers", "setid.mat", mat(trnid=[[1]], valid=[[2]], tstid=[[1]]),
        r"image_00001.jpg: listed twice, for train and for eval",
    ),
    "flowers: swapped files": (
        "flowers", "imagelabels.mat", mat(trnid=[[7]]), "it has no 'labels', only trnid",
    ),
    "flowers: no .mat": ("flowers", "setid.mat", b"<html>", "setid.mat: not a usable .mat"),
    "pets: a short line": (
        "pets", "annotations/trainval.txt", _pets_list("Birman_9 3"), "line 'Birman_9 3', expected",
    ),
    "pets: a class in words": (
        "pets", "annotations/trainval.txt", _pets_list("Birman_9 x 1 1"), "line 'Birman_9 x 1 1'",
    ),
    "pets: class 0": (
        "pets", "annotations/trainval.txt", _pets_list("Birman_9 0 1 1"), "a class below 1",
    ),
    "pets: two names of a class": (
        "pets", "annotations/trainval.txt", _pets_list("Bengal_1 3 1 1"), "3 is Birman and Bengal",
    ),
    "pets: one name of two classes": (
        "pets", "annotations/trainval.txt", _pets_list("Birman_9 4 1 1"), "'Birman' stands twice",
    ),
    "pets: a class without images": (
        "pets", "annotations/trainval.txt", _pets_list("Bengal_1 5 1 1"), "no image of class 4",
    ),
    "pets: train in test": (
        "pets", "annotations/test.txt", lines_of("Birman_7 3 1 2"), "listed twice, for train and",
    ),
    "pets: an empty list": ("pets", "annotations/test.txt", b"\n\n", "the file is empty"),
    "cars: the test annotations without classes": (
        "cars", "cars_test_annos_withlabels.mat",
        annotations_of(("00001.jpg",), ("00002.jpg",), names=("fname",)), "no field 'class'",
    ),
    "cars: class 3 of 2": (
        "cars", "cars_test_annos_withlabels.mat",
        annotations_of((3, "00001.jpg"), (1, "00002.jpg"), names=("class", "fname")),
        r"image 00001.jpg: label 3, expected 1 to 2",
    ),
    "cars: names that are none": (
        "cars", "devkit/cars_meta.mat", mat(class_names=[[1, 2]]), "no list of strings",
    ),
    "cars: a name twice": (
        "cars", "devkit/cars_meta.mat", mat(class_names=np.array([["a", "a"]], object)),
        "class 'a' stands twice",
    ),
    "aircraft: a variant that is none": (
        "aircraft", f"{DATA}/images_variant_val.txt", lines_of("0034309 Cessna 173"),
        "'0034309 Cessna 173', expected an image and a variant",
    ),
    "aircraft: no variant": (
        "aircraft", f"{DATA}/images_variant_val.txt", lines_of("0034309"), "expected an image and",
    ),
    "aircraft: control characters": (
        "aircraft", f"{DATA}/variants.txt", b"707\x1b[2J\nCessna 172\n", "no name of a class",
    ),
    "food: a class that is none": (
        "food", f"{FOOD}/test.txt", lines_of("apple/1"), "'apple/1', expected CLASS/IMAGE",
    ),
    "food: a class twice": (
        "food", f"{FOOD}/classes.txt", lines_of("waffles", "waffles"), "'waffles' stands twice",
    ),
    "food: a path that leaves the images": (
        "food", f"{FOOD}/test.txt", lines_of("waffles/../../etc/passwd"), "no images/waffles/../",
    ),
    "birdsnap: another table": (
        "birdsnap", "birdsnap/images.txt", lines_of("id\tname", "1\tx"), "no column 'path'",
    ),
    "birdsnap: a short line": (
        "birdsnap", "birdsnap/images.txt", lines_of("url\tmd5\tpath\tspecies_id", "u\tm"),
        "has 2 fields",
    ),
    "birdsnap: species 3 of 2": (
        "birdsnap", "birdsnap/images.txt", lines_of("path\tspecies_id", "Brant/3.jpg\t3"),
        "image Brant/3.jpg: label 3, expected 1 to 2",
    ),
    "birdsnap: no number": (
        "birdsnap", "birdsnap/images.txt", lines_of("path\tspecies_id", "Brant/3.jpg\tx"),
        "'x' is no number",
    ),
    "birdsnap: a test image that is none": (
        "birdsnap", "birdsnap/test_images.txt", lines_of("path", "Brant/9.jpg"),
        r"Brant/9.jpg \(1 in all\) is not in images.txt",
    ),
    "birdsnap: species out of order": (
        "birdsnap", "birdsnap/species.txt", lines_of("id\tcommon", "2\tBrant"), "expected 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_labels_that_do_not_fit_are_refused(what: str, tmp_path: Path) -> None:
    name, path, data, problem = BAD[what]
    layout, make = SETS[name]
    source = write(tmp_path / "source", change(make(), path, data))
    with pytest.raises(Misuse, match=problem):
        Found(source, layout)


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"splits": {"train": "train"}}, "--split"),
        ({"splits": {}}, "--split"),
        ({"eval_labels": {"a": "b"}}, "--eval-labels"),
        ({"eval_prefix": "food-101/"}, "--eval-source"),
    ],
)
def test_options_without_effect_are_refused(
    given: dict[str, object], option: str, tmp_path: Path
) -> None:
    fields = {"splits": None, "eval_labels": None, "eval_prefix": "", "classes": ()}
    options = LayoutOptions(**{**fields, "label_space": "", **given})  # type: ignore[arg-type]
    source = write(tmp_path / "source", food()) / "food-101.tar.gz"
    with pytest.raises(Misuse, match=f"^{option}: --layout food101 takes its splits from its own"):
        Found(source, "food101", options)


def test_a_source_of_another_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", food())
    monkeypatch.setattr(official, "MAX_FILES", 10)
    with pytest.raises(Misuse, match="11 files, too many for food101"):
        Found(source, "food101")


def test_a_list_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "source", food())
    monkeypatch.setattr(official.Official.read, "__defaults__", (20,))
    with pytest.raises(Misuse, match="classes.txt: 18 bytes|expected at most 20"):
        Found(source, "food101")


def test_a_list_that_vanished_is_named(tmp_path: Path) -> None:
    source = unpack(tmp_path / "source", food())
    found = Found(source, "food101")
    (source / "food-101" / "meta" / "train.txt").write_text("")
    with pytest.raises(Misuse, match="train.txt: ends after 0 of"):
        LAYOUTS["food101"](found.catalogue, found.reader, OPTIONS)
    (source / "food-101" / "meta" / "train.txt").unlink()
    with pytest.raises(Misuse, match="train.txt: cannot be read: No such file"):
        LAYOUTS["food101"](found.catalogue, found.reader, OPTIONS)


def test_old_lists_may_be_latin_1(tmp_path: Path) -> None:
    archives = change(
        food(), f"{FOOD}/classes.txt", "apple_pie\nwaffles\ncrème\n".encode("latin-1")
    )
    classes = Found(write(tmp_path / "source", archives), "food101").placed.classes
    assert classes == ("apple_pie", "waffles", "crème")
