"""ImageNet-1k (ILSVRC2012) as it is handed out: a tar of class tars, a flat tar, a list of classes.

1. All names are looked at once: what is train, what is val, which lists there are.
2. Archives that are missing, swapped or doubled, and lists that do not fit, are refused.
3. Images come in the order of the catalogue; val ones are `eval`, by the list.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from data_prep.catalogue import Catalogue, Note, Place, Reader
from data_prep.layouts.groundtruth import FILES, NEEDED, read_truth, val_number
from data_prep.layouts.synsets import (
    PAGE,
    Home,
    home_of,
    is_image_name,
    name_some,
    refuse_options,
    say,
    shown,
)
from data_prep.population import EVAL, TRAIN, Item, Placed
from data_prep.tar import printable
from pipeline.data.labels import published
from pipeline.spec import Misuse

if TYPE_CHECKING:  # the table of layouts imports this module
    from data_prep.layouts import LayoutOptions

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
NUM_CLASSES, NUM_TRAIN, NUM_VAL = 1_000, 1_281_167, 50_000
_DOGS_TAR = "ILSVRC2012_img_train_t3.tar"
"""Dogs of task 3: images that are in the train tar, too."""
_TEST = "ILSVRC2012_test_"
_BOXES = ".xml"


def place_imagenet1k(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place ImageNet-1k: train from the class tars, `eval` from the validation images.

    Args:
        catalogue: of a folder with the archives (or what is in them), or of the train tar alone.
        reader: reads the list of validation classes.
        options: `classes` that are wanted; the others are refused.

    Raises:
        Misuse: archives are missing, swapped or doubled, or the list does not fit the images.
    """
    refuse_options(options, "imagenet1k")
    found = _Found(catalogue)
    found.check()
    truth = read_truth(found.lists, reader, found.val) if found.val else {}
    _check_known(truth, found.train, options.classes)
    found.say_unusual()
    refused: list[Note] = []
    around = {home.around for home in found.homes.values()}
    homes = filter(None, map(home_of, catalogue.folders))
    return Placed(
        items=_items(catalogue, truth, refused),
        folders={home.synset for home in homes if home.around in around},
        refused=refused,
    )


class _Found:
    """What all names of the sources say."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.train: Counter[str] = Counter()
        self.homes: dict[str, Home] = {}
        self.val = array("I")
        self.lists: dict[str, list[Place]] = {}
        self.num_test = self.num_dogs = 0
        self.first = ""
        for row in range(len(catalogue)):
            self._look(catalogue, row, catalogue.name(row))

    def _look(self, catalogue: Catalogue, row: int, name: str) -> None:
        folder, _, file = name.rpartition("/")
        number = val_number(file)
        home = None if number is not None or file.endswith(_BOXES) else home_of(folder)
        if number is not None:
            self.val.append(number)
            self._check_swapped(name, TRAIN_TAR, f"validation images, as {VAL_TAR} does")
        elif home and _DOGS_TAR in home.around:
            self.num_dogs += 1
        elif home:
            self.train[home.synset] += 1
            if self.homes.get(home.synset) != home:
                self._check_swapped(name, VAL_TAR, f"class tars, as {TRAIN_TAR} does")
                if home.synset in self.homes:
                    raise self._twice(home)
                self.homes[home.synset] = home
        elif file in FILES:
            self.lists.setdefault(file, []).append(catalogue.place(row))
        self.num_test += file.startswith(_TEST)
        self.first = self.first or printable(name)

    def _check_swapped(self, name: str, archive: str, what: str) -> None:
        if name.startswith(f"{archive}/") or f"/{archive}/" in name:
            raise Misuse(
                f"{archive}: it holds {what} (see {printable(name)}); give each archive its own "
                f"name, or get it again from {PAGE}"
            )

    def _twice(self, home: Home) -> Misuse:
        one, other = (shown(each.around) for each in (self.homes[home.synset], home))
        return Misuse(
            f"class {home.synset} stands twice in the source, in {one} and in {other}; leave one "
            "of them there, or give the train tar itself"
        )

    def check(self) -> None:
        """Refuse sources without train images or of another set, and images that stand twice."""
        if not self.train:
            there = f"only the {len(self.val):,} validation images" if self.val else "none"
            raise Misuse(
                f"--layout imagenet1k: it needs the images to train on, and the source has {there} "
                f"(its first file is {self.first}); give {TRAIN_TAR} ({PAGE}), or a folder with "
                f"it, {VAL_TAR} and one of {NEEDED}"
            )
        if len(self.train) > NUM_CLASSES:
            raise Misuse(
                f"--layout imagenet1k: the source has {len(self.train):,} classes, ImageNet-1k has "
                f"{NUM_CLASSES:,}; use --layout imagenet21k for the larger releases"
            )
        twice = [number for number, count in Counter(self.val).items() if count > 1]
        if twice:
            raise Misuse(
                f"ILSVRC2012_val_{min(twice):08d}.JPEG stands twice in the source ({len(twice):,} "
                f"such images); leave one copy there, or give a folder with {VAL_TAR}"
            )

    def say_unusual(self) -> None:
        """Tell what is not as published, where it may be on purpose."""
        known = set(published("imagenet_1k").classes)
        lacking, extra = known - self.train.keys(), self.train.keys() - known
        total = self.train.total()
        if lacking:
            say(f"{len(lacking):,} of the 1,000 classes have no image: {name_some(lacking)}")
        if extra:
            say(f"{len(extra):,} classes are not of ImageNet-1k: {name_some(extra)}")
        if not lacking and total != NUM_TRAIN:
            say(f"{total:,} images to train on; ImageNet-1k as published has {NUM_TRAIN:,}")
        if not self.val:
            say(f"no validation images: without {VAL_TAR} an eval split comes from --holdout only")
        elif len(self.val) != NUM_VAL:
            say(f"{len(self.val):,} validation images; ImageNet-1k as published has {NUM_VAL:,}")
        if self.num_test:
            say(f"{self.num_test:,} test images, whose classes are secret, are left out")
        if self.num_dogs:
            say(f"{self.num_dogs:,} images of {_DOGS_TAR} are left out: the train tar has them")


def _check_known(
    truth: Mapping[int, str], train: Mapping[str, int], classes: Collection[str]
) -> None:
    """Refuse validation images of classes that are wanted, but have no image to train on."""
    lacking = set(truth.values()) - train.keys()
    if classes:
        lacking &= set(classes)
    if lacking:
        raise Misuse(
            f"validation images are of {len(lacking):,} classes without images to train on: "
            f"{name_some(lacking)}; get the missing class tars ({PAGE}), or name the classes you "
            "want with --classes"
        )


def _items(catalogue: Catalogue, truth: Mapping[int, str], refused: list[Note]) -> Iterator[Item]:
    for place in catalogue.places():
        folder, _, file = place.name.rpartition("/")
        number = val_number(file)
        if number is not None:
            yield Item(place, EVAL, truth[number])
            continue
        home = home_of(folder)
        if home is None:
            if is_image_name(file) and not file.startswith(_TEST):
                reason = "lies in no class tar, and is no validation image"
                refused.append(Note(place.name, "no class", reason))
        elif not file.endswith(_BOXES) and _DOGS_TAR not in home.around:
            yield Item(place, TRAIN, home.synset)
