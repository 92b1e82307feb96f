"""Label spaces: which class stands behind which index.

The list travels with shards, checkpoints and registered models, because a head's width is no index
map: there are ImageNet-21k heads of 19,167, 21,841 and 21,843 classes in three different orders.
"""

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import field_validator, model_validator

from pipeline.spec import Misuse, Spec, canonical_json

PUBLISHED = {
    "imagenet_1k": 1_000,
    "imagenet_21k_fall11": 21_841,
    "imagenet_21k_google": 21_843,
    "imagenet_21kp_fall11": 11_221,
    "imagenet_21kp_winter21": 10_450,
}
"""Label spaces whose list is known, and their sizes: all of WordNet ids, in sorted order.

The ids are those of the ImageNet releases; google is fall11 and two synsets without an image
(n03931044, n09859684), 21kp what ImageNet-21K-P (Ridnik et al. 2021) keeps of a release. The
19,167 ids of winter21 are in no list of their own: they follow from the archive.
"""
_SYNSETS = Path(__file__).parent / "label_spaces" / "imagenet.txt"
_LETTERS = dict(zip(PUBLISHED, "1fgpw", strict=True))
"""A line of the file is an id, and the letters of the label spaces that it is in."""


class LabelSpace(Spec):
    """Class names (WordNet ids for ImageNet) in index order, and names for people."""

    name: str
    classes: tuple[str, ...]
    display: tuple[str, ...] = ()

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if not classes:
            raise ValueError("there is no class; name at least one")
        if len(set(classes)) != len(classes):
            seen = set[str]()
            twice = next(name for name in classes if name in seen or seen.add(name))
            raise ValueError(f"class {twice!r} stands twice; every class needs its own name")
        return classes

    @model_validator(mode="after")
    def _check_display(self) -> "LabelSpace":
        if self.display and len(self.display) != len(self.classes):
            raise ValueError(
                f"{len(self.display)} display names for {len(self.classes)} classes; "
                "give one for each class or none"
            )
        return self

    def __len__(self) -> int:
        return len(self.classes)

    def digest(self) -> str:
        """Return the sha256 (hex) of the class list; what it is called for people is left out."""
        return hashlib.sha256(canonical_json(list(self.classes)).encode()).hexdigest()

    def text(self, index: int) -> str:
        """Return the name to show for class `index`."""
        return self.display[index] if self.display else self.classes[index]

    def index(self, name: str) -> int:
        """Return the index of class `name`.

        Raises:
            Misuse: there is no such class; the message names similar ones.
        """
        if name in self.classes:
            return self.classes.index(name)
        near = get_close_matches(name, self.classes, n=3, cutoff=0.0)
        raise Misuse(f"label space '{self.name}' has no class '{name}'; similar: {', '.join(near)}")

    def positions_in(self, other: "LabelSpace") -> tuple[int, ...]:
        """Return, for each class here, its index in `other`, or -1 where `other` lacks it.

        With it the rows of a head carry over: 999 of the 1000 ImageNet-1k synsets are in fall11.
        """
        where = {name: index for index, name in enumerate(other.classes)}
        return tuple(where.get(name, -1) for name in self.classes)


class Conversion(NamedTuple):
    """How the indices of one label space carry over to another."""

    positions: tuple[int, ...]
    """For each class of the first its index in the second, or -1."""
    missing: tuple[str, ...]
    """Classes of the first that the second lacks."""
    extra: tuple[str, ...]
    """Classes of the second that the first lacks."""


def convert(old: LabelSpace, new: LabelSpace) -> Conversion:
    """Return how `old` carries over to `new`, class by class; widths and orders may differ."""
    positions = old.positions_in(new)
    missing = (name for name, where in zip(old.classes, positions, strict=True) if where < 0)
    known = set(old.classes)
    extra = (name for name in new.classes if name not in known)
    return Conversion(positions, tuple(missing), tuple(extra))


@cache
def published(name: str) -> LabelSpace:
    """Return a published label space, one of `PUBLISHED`.

    Raises:
        Misuse: there is none of this name; the message lists those there are.
    """
    if name not in PUBLISHED:
        raise Misuse(
            f"label space '{name}' is not a published one; there are: {', '.join(PUBLISHED)} "
            "(that of winter21 is derived from its archive)"
        )
    letter = _LETTERS[name]
    with _SYNSETS.open(encoding="ascii") as lines:
        members = (line.split() for line in lines)
        classes = tuple(synset for synset, letters in members if letter in letters)
    assert len(classes) == PUBLISHED[name], f"{_SYNSETS} is damaged"
    return LabelSpace(name=name, classes=classes)


def name_of(classes: Sequence[str]) -> str | None:
    """Return the name of the published label space with just these classes in this order."""
    for name, size in PUBLISHED.items():
        if size == len(classes) and published(name).classes == tuple(classes):
            return name
    return None
