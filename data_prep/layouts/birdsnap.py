"""Birdsnap 1.1: birdsnap.tgz, and beside it the images that its get_birdsnap.py downloads.

500 species in the order of species.txt, by their common names; test_images.txt (2,443) is `eval`,
the rest of images.txt (47,386) `train`. Many images are gone from the web: those that are missing
are refused by name, so say how many there were with any result.
"""

from typing import TYPE_CHECKING

from data_prep.catalogue import Catalogue, Reader
from data_prep.layouts.official import About, Listed, Official
from data_prep.population import EVAL, TRAIN, Placed

if TYPE_CHECKING:
    from data_prep.layouts import LayoutOptions

_ABOUT = About(
    "birdsnap",
    "birdsnap.tgz and the folder download/images that its get_birdsnap.py fills",
    "the page of its authors (Berg et al. 2014, Birdsnap)",
)
_ABSENT = "listed in images.txt, but not in the source: gone from the web or not downloaded"


def place_birdsnap(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place Birdsnap by its tables.

    Raises:
        Misuse: a table is missing, the tables do not agree, or no listed image is there.
    """
    official = Official(catalogue, reader, options, _ABOUT)
    classes = _species(official)
    tests = {path for (path,) in _table(official, "birdsnap/test_images.txt", "path")}
    listed: list[Listed] = []
    for path, species in _table(official, "birdsnap/images.txt", "path", "species_id"):
        cls = official.label(classes, _number(official, species), f"images.txt, image {path}")
        listed.append(Listed(f"images/{path}", EVAL if path in tests else TRAIN, cls))
    strangers = tests - {one.path.removeprefix("images/") for one in listed}
    if strangers:
        problem = f"{min(strangers)} ({len(strangers):,} in all) is not in images.txt"
        raise official.damaged("test_images.txt", problem)
    return official.placed(listed, official.images("images"), classes, absent=_ABSENT)


def _species(official: Official) -> tuple[str, ...]:
    rows = _table(official, "birdsnap/species.txt", "id", "common")
    for place, (number, name) in enumerate(rows, 1):
        if _number(official, number) != place:
            problem = f"species {name} has the id {number}, expected {place}"
            raise official.damaged("species.txt", problem)
    return official.classes((name for _, name in rows), "species.txt")


def _number(official: Official, text: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise official.damaged("images.txt", f"species {text[:40]!r} is no number")
    return int(text)


def _table(official: Official, tail: str, *columns: str) -> list[tuple[str, ...]]:
    """Return some columns of a table: a line of names, then lines of fields between tabs."""
    head, *lines = official.lines(tail)
    names = head.split("\t")
    for column in columns:
        if column not in names:
            raise official.damaged(tail, f"its first line names no column '{column}'")
    numbers = [names.index(column) for column in columns]
    rows: list[tuple[str, ...]] = []
    for line in lines:
        fields = line.split("\t")
        if len(fields) <= max(numbers):
            raise official.damaged(tail, f"line {line[:80]!r} has {len(fields)} fields")
        rows.append(tuple(fields[number].strip() for number in numbers))
    return rows
