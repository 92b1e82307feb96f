"""Food-101: food-101.tar.gz.

Splits as published: `train` (750 images a class, not cleaned by its makers) and `eval` (250), 101
classes in the order of meta/classes.txt. A line of a list is `apple_pie/1005649`.
https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/
"""

from typing import TYPE_CHECKING

from data_prep.catalogue import Catalogue, Reader
from data_prep.layouts.official import About, Listed, Official
from data_prep.population import EVAL, TRAIN, Placed

if TYPE_CHECKING:
    from data_prep.layouts import LayoutOptions

_ABOUT = About(
    "food101",
    "food-101.tar.gz",
    "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
)
_LISTS = {"meta/train.txt": TRAIN, "meta/test.txt": EVAL}


def place_food101(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place Food-101 by its lists.

    Raises:
        Misuse: the archive is missing or cut, or images and lists do not agree.
    """
    official = Official(catalogue, reader, options, _ABOUT)
    classes = official.classes(official.lines("meta/classes.txt"), "meta/classes.txt")
    known = set(classes)
    listed: list[Listed] = []
    for tail, split in _LISTS.items():
        for line in official.lines(tail):
            cls = line.partition("/")[0]
            if cls not in known:
                problem = f"line {line[:80]!r}, expected CLASS/IMAGE of a class in classes.txt"
                raise official.damaged(tail, problem)
            listed.append(Listed(f"images/{line}.jpg", split, cls))
    return official.placed(listed, official.images("images"), classes)
