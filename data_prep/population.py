"""The images of a build: for each its place, its split and its class, as columns on disk.

A layout (data_prep.layouts) turns the catalogue into `Item`s; the rest of a build counts rows of
the population and never looks at the sources' own structure again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.catalogue import REFUSED, Container, Note, Notes, Place
from data_prep.columns import Table, TableWriter
from pipeline.data.labels import LabelSpace
from pipeline.spec import Misuse

ITEM = np.dtype(
    [
        ("name_end", "<u8"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("container", "<u4"),
        ("cls", "<u4"),  # number in `classes`, the label space's order
        ("split", "u1"),  # number in `splits`
        ("pixels", "u1"),  # an image file (0) or raw pixels of PIXELS[n]
    ]
)
TRAIN, EVAL = "train", "eval"
PIXELS = ("", "planes32")
"""`planes32`: 3,072 bytes, the 32x32 red, green and blue planes one after another (CIFAR)."""


class Item(NamedTuple):
    """One image; `place.name` is unique in the population and decides order and holdout."""

    place: Place
    split: str
    cls: str
    pixels: str = ""


@dataclass
class Placed:
    """What a layout says of a catalogue.

    `refused` may grow while `items` are consumed; who consumes them may empty it.
    """

    items: Iterable[Item]
    classes: tuple[str, ...] | None = None
    """The label space in index order; None: the sorted classes of train, full or empty."""
    folders: set[str] = field(default_factory=set)
    """Classes that exist as a folder, maybe an empty one; they belong to a derived label space."""
    display: dict[str, str] = field(default_factory=dict)
    refused: list[Note] = field(default_factory=list)


class Population(Table):
    """The finished population."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ITEM)
        about = self.about
        self.containers: list[Container] = about["containers"]  # type: ignore[assignment]
        self.splits: list[str] = about["splits"]  # type: ignore[assignment]
        self.classes: list[str] = about["classes"]  # type: ignore[assignment]
        self.display: list[str] = about["display"]  # type: ignore[assignment]

    @property
    def refused(self) -> Notes:
        """Files without a class, or with one that the label space lacks."""
        return Notes(self)

    def place(self, row: int) -> Place:
        """Return the place of a row."""
        item = self.rows[row]
        where = int(item["container"]), int(item["offset"]), int(item["size"])
        return Place(self.name(row), *where)


class LabelChoice(NamedTuple):
    """What decides a label space before any image is seen."""

    space: LabelSpace | None
    """A published list that was asked for, or None."""
    classes: tuple[str, ...]
    """Only these, sorted; empty: all."""
    names: Mapping[str, str]
    """Class -> name for people; goes before what the layout says."""


def write_population(
    path: Path, placed: Placed, containers: list[Container], choice: LabelChoice
) -> Population:
    """Write all items of a layout, with their classes as numbers of the label space.

    Items of classes that were not asked for are left out without a note; those that a published
    label space lacks are refused by name. That may be most of 14 million: notes go to the disk at
    once, and `placed.refused` is empty in the end.

    Raises:
        Misuse: no image, an unknown class was asked for, or eval has classes that train lacks.
    """
    known = _known_classes(placed, choice)
    numbers = {name: number for number, name in enumerate(known or ())}
    splits: list[str] = []
    trained, unknown = set(placed.folders), set[str]()
    with TableWriter(path, ITEM, (REFUSED,)) as table:
        for item in placed.items:
            if placed.refused:
                _write_notes(table, placed)
            if known is not None and item.cls not in numbers:
                unknown.add(item.cls)
                if choice.space is not None:
                    placed.refused.append(_not_in(choice.space, item))
                continue
            if item.split not in splits:
                splits.append(item.split)
            if item.split == TRAIN:
                trained.add(item.cls)
            name, container, offset, size = item.place
            number = numbers.setdefault(item.cls, len(numbers))
            what = number, splits.index(item.split), PIXELS.index(item.pixels)
            table.add(name, offset, size, container, *what)
        _write_notes(table, placed)
        _check_asked(choice.classes, trained, unknown)
        if not len(table):
            raise Misuse(
                "the sources hold no image with a class; arrange the images as CLASS/name.jpg, or "
                "name the layout of the archives with --layout"
            )
        classes = list(known) if known is not None else _derive(trained, numbers)
        if known is None:
            table.remap("cls", _renumbering(numbers, classes))
        table.about = {
            "containers": containers,
            "splits": splits,
            "classes": classes,
            "display": _display(placed, choice, classes),
        }
    return Population(path)


def _write_notes(table: TableWriter, placed: Placed) -> None:
    for note in placed.refused:
        table.add_line(REFUSED, note)
    placed.refused.clear()


def _known_classes(placed: Placed, choice: LabelChoice) -> tuple[str, ...] | None:
    """Return the label space where it is known before the items are; None: it follows from them."""
    known = placed.classes if choice.space is None else choice.space.classes
    if not choice.classes:
        return known
    if known is None:
        return tuple(sorted(choice.classes))
    return tuple(name for name in known if name in set(choice.classes))


def _not_in(space: LabelSpace, item: Item) -> Note:
    reason = f"class '{item.cls}' is not in the label space {space.name}"
    return Note(item.place.name, "class not in the label space", reason)


def _check_asked(asked: tuple[str, ...], found: set[str], others: set[str]) -> None:
    for name in asked:
        if name not in found:
            near = ", ".join(get_close_matches(name, found | others, n=3, cutoff=0.0))
            raise Misuse(f"--classes: the source has no class '{name}'; similar: {near}")


def _derive(trained: set[str], numbers: Mapping[str, int]) -> list[str]:
    """Return the sorted classes of train; an eval class that train lacks is a mistake."""
    strangers = numbers.keys() - trained
    if strangers:
        raise Misuse(
            f"class '{min(strangers)}' ({len(strangers)} in all) has images to evaluate on, but no "
            "train folder; correct the name or remove its folder"
        )
    return sorted(trained)


def _renumbering(numbers: Mapping[str, int], classes: list[str]) -> np.ndarray:
    where = {name: number for number, name in enumerate(classes)}
    return np.array([where[name] for name in numbers], np.uint32)


def _display(placed: Placed, choice: LabelChoice, classes: list[str]) -> list[str]:
    names = {**placed.display, **choice.names}
    if names:
        return [names.get(name, name) for name in classes]
    return list(choice.space.display) if choice.space and len(choice.space) == len(classes) else []
