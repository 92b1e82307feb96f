"""ImageNet-21k as it is handed out (a tar or .tar.gz of class tars), and the selection 21K-P.

The class is the name of the class tar: names inside differ at places, with another synset's id,
folders or a suffix of their own. Neither release has an official split; 21K-P makes one by name.
"""

from collections import Counter
from collections.abc import Iterator
from heapq import nsmallest
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from data_prep.catalogue import Catalogue, Note, Reader
from data_prep.layouts.synsets import (
    PAGE,
    SYNSET,
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

RELEASES = {"winter21": (19_167, 13_153_500), "fall11": (21_841, 14_197_122)}
"""Classes and images of the releases, as published."""
MORE_THAN = 500
"""21K-P keeps the classes with more images than this,"""
NUM_EVAL = 50
"""and takes the first so many of each, by file name, to evaluate on (its processing_script.sh)."""
_NEEDED = "winter21_whole.tar.gz, fall11_whole.tar, or a folder with their class tars"


def place_imagenet21k(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place all of ImageNet-21k: everything is train, until something is held out.

    Raises:
        Misuse: there are no class tars, classes stand twice, or it is ImageNet-1k.
    """
    del reader
    refuse_options(options, "imagenet21k")
    counts = _count(catalogue, "imagenet21k")
    refused: list[Note] = []
    none = np.zeros(0, np.int64)
    return Placed(
        items=_items(catalogue, counts, none, refused),
        folders={home.synset for home in map(home_of, catalogue.folders) if home},
        refused=refused,
    )


def place_imagenet21k_p(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place ImageNet-21K-P, by its rule on top of either release.

    Kept are classes of more than 500 images; the first 50 of each by file name are `eval`. The
    original takes them in the order of `ls`, which depends on the language of a machine; here
    names are sorted by their characters, so n..._1.JPEG comes before n..._10.JPEG.
    Source: Ridnik et al. 2021, "ImageNet-21K Pretraining for the Masses".

    Raises:
        Misuse: as `place_imagenet21k`; also: no class has more than 500 images.
    """
    del reader
    refuse_options(options, "imagenet21k_p")
    counts = _count(catalogue, "imagenet21k_p")
    kept = Counter({synset: count for synset, count in counts.items() if count > MORE_THAN})
    if not kept:
        synset, most = counts.most_common(1)[0]
        raise Misuse(
            f"--layout imagenet21k_p: no class has more than {MORE_THAN} images; the largest, "
            f"{synset}, has {most:,}. Give a whole release, or use --layout imagenet21k"
        )
    _say_selection(kept)
    refused: list[Note] = []
    return Placed(
        items=_items(catalogue, kept, _first_rows(catalogue, kept), refused), refused=refused
    )


def _homes(catalogue: Catalogue) -> Iterator[tuple[int, Home | None]]:
    for row in range(len(catalogue)):
        yield row, home_of(catalogue.name(row).rpartition("/")[0])


def _count(catalogue: Catalogue, layout: str) -> Counter[str]:
    """Return the number of files of each class; refuse what is no release of ImageNet-21k."""
    counts: Counter[str] = Counter()
    arounds: dict[str, str] = {}
    for home, rows in groupby(_homes(catalogue), key=lambda each: each[1]):
        if home is None:
            continue
        counts[home.synset] += sum(1 for _ in rows)
        around = arounds.setdefault(home.synset, home.around)
        if around != home.around:
            raise Misuse(
                f"class {home.synset} stands twice in the source, in {shown(around)} and in "
                f"{shown(home.around)}; leave one of them there"
            )
    if not counts:
        raise Misuse(
            f"--layout {layout}: the source has no class tars n01440764.tar (its first file is "
            f"{printable(catalogue.name(0))}); give {_NEEDED} ({PAGE})"
        )
    _check_release(counts, layout)
    return counts


def _check_release(counts: Counter[str], layout: str) -> None:
    if counts.keys() == set(published("imagenet_1k").classes):
        raise Misuse(
            f"--layout {layout}: the source has the 1,000 classes of ImageNet-1k, and no more; "
            f"use --layout imagenet1k, or give {_NEEDED}"
        )
    found = len(counts), counts.total()
    if found not in RELEASES.values():
        known = "; ".join(f"{name} has {n:,} and {m:,}" for name, (n, m) in RELEASES.items())
        say(f"{found[0]:,} classes and {found[1]:,} images, as in no release ({known})")
    strangers = counts.keys() - set(published("imagenet_21k_fall11").classes)
    if strangers:
        say(f"{len(strangers):,} classes are not of ImageNet-21k: {name_some(strangers)}")


def _say_selection(kept: Counter[str]) -> None:
    """Tell which published list the selection is, or what it lacks of one."""
    for release in RELEASES:
        if kept.keys() == set(published(f"imagenet_21kp_{release}").classes):
            return
    for release in RELEASES:
        known = set(published(f"imagenet_21kp_{release}").classes)
        say(
            f"{len(kept):,} classes have more than {MORE_THAN} images; of the {len(known):,} of "
            f"imagenet_21kp_{release} {len(known - kept.keys()):,} are not among them, and "
            f"{len(kept.keys() - known):,} others are"
        )


def _first_rows(catalogue: Catalogue, kept: Counter[str]) -> np.ndarray:
    """Return the rows of the first images of each class by file name, sorted, (N,) int64.

    The files of a class follow each other, so no more than one class is in memory at a time.
    """
    first: dict[str, np.ndarray] = {}
    for home, run in groupby(_homes(catalogue), key=lambda each: each[1]):
        if home is None or home.synset not in kept:
            continue
        before = first.get(home.synset, np.zeros(0, np.int64))
        rows = [*before.tolist(), *(row for row, _ in run)]
        least = nsmallest(NUM_EVAL, rows, key=lambda row: _file_key(catalogue, row))
        first[home.synset] = np.array(least, np.int64)
    return np.sort(np.concatenate(list(first.values())))


def _file_key(catalogue: Catalogue, row: int) -> tuple[str, str]:
    name = catalogue.name(row)
    return name.rpartition("/")[2], name


def _items(
    catalogue: Catalogue, kept: Counter[str], held: np.ndarray, refused: list[Note]
) -> Iterator[Item]:
    """Yield the images of the classes that are kept; rows in `held` (sorted) are for eval."""
    waiting = iter(held.tolist())
    next_held = next(waiting, -1)
    odd: Counter[str] = Counter()
    for row, place in enumerate(catalogue.places()):
        folder, _, file = place.name.rpartition("/")
        home = home_of(folder)
        if home is None:
            if is_image_name(file):
                refused.append(Note(place.name, "no class", "lies in no class tar"))
            continue
        if home.synset not in kept:
            continue
        split = TRAIN
        if row == next_held:
            split, next_held = EVAL, next(waiting, -1)
        if not file.startswith(home.synset) and SYNSET.match(file):
            odd[home.synset] += 1
        yield Item(place, split, home.synset)
    if odd:
        say(
            f"{odd.total():,} images have the id of another synset in their name than their class "
            f"tar ({name_some(odd)}); the class tar decides"
        )
