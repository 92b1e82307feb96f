"""How sources are laid out: one function for each way in which image sets are handed out.

A layout turns the catalogue of all files into items with split and class. What a set lacks, or
what is another set, it refuses before the first item.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_prep.catalogue import Catalogue, Reader
from data_prep.layouts.folders import place_folders
from data_prep.layouts.imagenet import place_imagenet1k
from data_prep.layouts.imagenet21k import place_imagenet21k, place_imagenet21k_p
from data_prep.layouts.transfer import (
    place_aircraft,
    place_birdsnap,
    place_cars,
    place_cifar10,
    place_cifar100,
    place_flowers102,
    place_food101,
    place_pets,
)
from data_prep.population import Placed


@dataclass(frozen=True)
class LayoutOptions:
    """What a person said of the sources, beside the name of the layout."""

    splits: dict[str, str] | None = None
    """Folder -> split; None finds folders named train and test, {} takes none for a split."""
    eval_labels: dict[str, str] | None = None
    """File (without suffix) -> class, for images of the eval source that lie in no class folder."""
    eval_prefix: str = ""
    """What names in the eval source start with; empty: there is no such source."""
    classes: tuple[str, ...] = ()
    """Only these are wanted; empty: all."""
    label_space: str = ""
    """The published one that was asked for, if any."""


Layout = Callable[[Catalogue, Reader, LayoutOptions], Placed]
"""Raises Misuse where archives are missing or wrong, before the first item is asked for."""

LAYOUTS: Mapping[str, Layout] = {
    "folders": place_folders,
    "imagenet1k": place_imagenet1k,
    "imagenet21k": place_imagenet21k,
    "imagenet21k_p": place_imagenet21k_p,
    "cifar10": place_cifar10,
    "cifar100": place_cifar100,
    "flowers102": place_flowers102,
    "pets": place_pets,
    "cars": place_cars,
    "aircraft": place_aircraft,
    "food101": place_food101,
    "birdsnap": place_birdsnap,
}
