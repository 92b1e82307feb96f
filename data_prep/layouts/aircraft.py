"""FGVC-Aircraft, release 2013b: fgvc-aircraft-2013b.tar.gz.

Classes are the 100 variants, in the order of variants.txt. Splits as published: `train` (3,334),
`minival` (val, 3,333) and `eval` (test, 3,333); papers train on train and val together (6,667).
A line is `1025794 707-320`. https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/
"""

from typing import TYPE_CHECKING

from data_prep.catalogue import Catalogue, Reader
from data_prep.layouts.official import MINIVAL, About, Listed, Official
from data_prep.population import EVAL, TRAIN, Placed

if TYPE_CHECKING:
    from data_prep.layouts import LayoutOptions

_ABOUT = About(
    "aircraft",
    "fgvc-aircraft-2013b.tar.gz",
    "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
)
_LISTS = {
    "images_variant_train.txt": TRAIN,
    "images_variant_val.txt": MINIVAL,
    "images_variant_test.txt": EVAL,
}


def place_aircraft(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place FGVC-Aircraft by its lists of variants.

    Raises:
        Misuse: the archive is missing or cut, or images and lists do not agree.
    """
    official = Official(catalogue, reader, options, _ABOUT)
    classes = official.classes(official.lines("variants.txt"), "variants.txt")
    known = set(classes)
    listed: list[Listed] = []
    for tail, split in _LISTS.items():
        for line in official.lines(tail):
            image, _, variant = line.partition(" ")  # "Cessna 172" has a space too
            if variant.strip() not in known:
                problem = f"line {line[:80]!r}, expected an image and a variant of variants.txt"
                raise official.damaged(tail, problem)
            listed.append(Listed(f"images/{image}.jpg", split, variant.strip()))
    return official.placed(listed, official.images("images"), classes)
