"""Label spaces: index order, digests, the published lists and carrying a head over."""

import pytest

from pipeline.data.labels import PUBLISHED, LabelSpace, convert, name_of, published
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
    positions, missing, extra = convert(PETS, other)
    assert positions == (2, -1, 1)
    assert missing == ("dog",)
    assert extra == ("ape",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "classes": []}, "there is no class"),
        ({"name": "x", "classes": ["a", "b", "a", "b"]}, "class 'a' stands twice"),
        ({"name": "x", "classes": ["a", "b"], "display": ["A"]}, "1 display names for 2 classes"),
    ],
)
def test_wrong_lists_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(Misuse, match=message):
        LabelSpace.parse(values, "labels.json")


def test_a_long_list_with_a_class_twice_is_refused_at_once() -> None:
    classes = [f"n{number:08d}" for number in range(50_000)] * 2
    with pytest.raises(Misuse, match="class 'n00000000' stands twice"):
        LabelSpace.parse({"name": "x", "classes": classes}, "labels.json")


# The lists as the timm library (1.0) ships them, read anew where it is installed.
TIMM_FILES = {
    "imagenet_1k": "imagenet_synsets.txt",
    "imagenet_21k_fall11": "imagenet22k_synsets.txt",
    "imagenet_21k_google": "imagenet21k_goog_synsets.txt",
    "imagenet_21kp_fall11": "imagenet21k_miil_synsets.txt",
    "imagenet_21kp_winter21": "imagenet21k_miil_w21_synsets.txt",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_lists_are_those_of_timm(name: str) -> None:
    resources = pytest.importorskip("importlib.resources")
    pytest.importorskip("timm")
    text = (resources.files("timm.data") / "_info" / TIMM_FILES[name]).read_text()
    assert published(name).classes == tuple(text.split())
    assert len(published(name)) == PUBLISHED[name]


def test_known_ids_stand_at_their_published_places() -> None:
    one_k = published("imagenet_1k")
    # Keras' imagenet_class_index.json: 0 tench, 281 tabby, 850 teddy, 999 toilet tissue.
    assert [one_k.classes[n] for n in (0, 281, 850, 999)] == [
        "n01440764",
        "n02123045",
        "n04399382",
        "n15075141",
    ]


# Dog breeds that ImageNet-21K-P leaves out of both releases, and the teddy that no 21k has.
DOGS = ("n02085782", "n02089078", "n02089867", "n02089973", "n02091635", "n02108000")
DOGS += ("n02112706", "n02113978")
TEDDY = "n04399382"


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("imagenet_21k_fall11", [TEDDY]),
        ("imagenet_21k_google", [TEDDY]),
        ("imagenet_21kp_fall11", [*DOGS, TEDDY]),
        ("imagenet_21kp_winter21", [*DOGS, TEDDY]),
    ],
)
def test_what_of_imagenet_1k_the_larger_sets_lack(name: str, missing: list[str]) -> None:
    space, other = published("imagenet_1k"), published(name)
    positions, lost, extra = convert(space, other)
    assert lost == tuple(missing)
    assert sum(position >= 0 for position in positions) == 1000 - len(missing)
    assert len(extra) == len(other) - 1000 + len(missing)
    for name, position in zip(space.classes, positions, strict=True):
        assert position < 0 or other.classes[position] == name


def test_google_has_two_synsets_more_than_fall11() -> None:
    google, fall11 = published("imagenet_21k_google"), published("imagenet_21k_fall11")
    assert convert(google, fall11).missing == ("n03931044", "n09859684")
    assert convert(fall11, google).missing == ()
    assert convert(published("imagenet_21kp_winter21"), fall11).missing == ()


def test_a_list_is_known_by_its_classes_in_order() -> None:
    classes = published("imagenet_21kp_winter21").classes
    assert name_of(list(classes)) == "imagenet_21kp_winter21"
    assert name_of(classes[::-1]) is None
    assert name_of(classes[1:]) is None


def test_an_unknown_list_is_refused_with_those_there_are() -> None:
    with pytest.raises(Misuse, match=r"'winter21' is not a published one; there are: imagenet_1k"):
        published("winter21")
