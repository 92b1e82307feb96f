"""Label spaces: index order, digests and carrying a head over to another space."""

import pytest

from pipeline.data.labels import LabelSpace
from pipeline.spec import Misuse

PETS = LabelSpace(name="pets", classes=("cat", "dog", "fox"), display=("Cat", "Dog", "Fox"))


def test_index_and_text_follow_the_order() -> None:
    assert len(PETS) == 3
    assert [PETS.index(name) for name in PETS.classes] == [0, 1, 2]
    assert PETS.text(1) == "Dog"
    assert LabelSpace(name="x", classes=("a",)).text(0) == "a"


def test_unknown_class_names_similar_ones() -> None:
    with pytest.raises(Misuse, match=r"no class 'dogg'; similar: dog"):
        PETS.index("dogg")


def test_digest_depends_on_classes_and_order_only() -> None:
    assert PETS.digest() == LabelSpace(name="other", classes=PETS.classes).digest()
    assert PETS.digest() != LabelSpace(name="pets", classes=("dog", "cat", "fox")).digest()


def test_positions_in_another_space_mark_what_it_lacks() -> None:
    other = LabelSpace(name="zoo", classes=("ape", "fox", "cat"))
    assert PETS.positions_in(other) == (2, -1, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "classes": []}, "there is no class"),
        ({"name": "x", "classes": ["a", "b", "a"]}, "class 'a' stands twice"),
        ({"name": "x", "classes": ["a", "b"], "display": ["A"]}, "1 display names for 2 classes"),
    ],
)
def test_wrong_lists_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(Misuse, match=message):
        LabelSpace.parse(values, "labels.json")
