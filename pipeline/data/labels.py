"""Label spaces: which class stands behind which index.

The list travels with shards, checkpoints and registered models, because a head's width is no index
map: there are ImageNet-21k heads of 19,167, 21,841 and 21,843 classes in three different orders.
"""

import hashlib
from difflib import get_close_matches

from pydantic import field_validator, model_validator

from pipeline.spec import Misuse, Spec, canonical_json


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
            twice = sorted({name for name in classes if classes.count(name) > 1})
            raise ValueError(f"class {twice[0]!r} stands twice; every class needs its own name")
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
