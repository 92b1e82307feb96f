"""Oxford-IIIT Pets: images.tar.gz and annotations.tar.gz.

Splits as published: `train` (trainval.txt, 3,680) and `eval` (test.txt, 3,669), 37 breeds. A line
is `Abyssinian_100 1 1 1`: image, class from 1, species, breed within the species; the class is
named by the front of the image's name. https://www.robots.ox.ac.uk/~vgg/data/pets/
"""

from typing import TYPE_CHECKING, NamedTuple

from data_prep.catalogue import Catalogue, Reader
from data_prep.layouts.official import About, Listed, Official
from data_prep.population import EVAL, TRAIN, Placed

if TYPE_CHECKING:
    from data_prep.layouts import LayoutOptions

_ABOUT = About(
    "pets",
    "images.tar.gz and annotations.tar.gz",
    "https://www.robots.ox.ac.uk/~vgg/data/pets/",
)
_LISTS = {"annotations/trainval.txt": TRAIN, "annotations/test.txt": EVAL}
_MAX_CLASSES = 1000


class _Line(NamedTuple):
    image: str
    breed: str
    number: int
    split: str


def place_pets(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place Oxford-IIIT Pets by its lists.

    Raises:
        Misuse: an archive is missing, or images and lists do not agree.
    """
    official = Official(catalogue, reader, options, _ABOUT)
    lines = [
        _parse(official, line, tail, split)
        for tail, split in _LISTS.items()
        for line in official.lines(tail)
        if not line.startswith("#")
    ]
    classes = _classes(official, lines)
    listed = [Listed(f"images/{image}.jpg", split, breed) for image, breed, _, split in lines]
    return official.placed(listed, official.images("images"), classes)


def _parse(official: Official, line: str, tail: str, split: str) -> _Line:
    fields = line.split()
    if len(fields) != 4 or not fields[1].isdecimal() or len(fields[1]) > 4:
        raise official.damaged(tail, f"line {line[:80]!r}, expected `image class species breed`")
    breed = fields[0].rpartition("_")[0]
    number = int(fields[1])
    if not breed or not 1 <= number <= _MAX_CLASSES:
        raise official.damaged(tail, f"line {line[:80]!r} has no breed or a class below 1")
    return _Line(fields[0], breed, number, split)


def _classes(official: Official, lines: list[_Line]) -> tuple[str, ...]:
    """Return the breeds in the order of their numbers, which must say the same in every line."""
    names: dict[int, str] = {}
    for line in lines:
        if names.setdefault(line.number, line.breed) != line.breed:
            problem = f"class {line.number} is {names[line.number]} and {line.breed}"
            raise official.damaged("annotations", problem)
    if sorted(names) != list(range(1, len(names) + 1)):
        lost = min(set(range(1, len(names) + 1)) - set(names))
        raise official.damaged("annotations", f"no image of class {lost} of {max(names)}")
    return official.classes((names[number] for number in sorted(names)), "annotations")
