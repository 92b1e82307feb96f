"""The small sets that models are finetuned on, each as its official archives lay it out."""

from data_prep.layouts.aircraft import place_aircraft
from data_prep.layouts.birdsnap import place_birdsnap
from data_prep.layouts.cars import place_cars
from data_prep.layouts.cifar import place_cifar10, place_cifar100
from data_prep.layouts.flowers import place_flowers102
from data_prep.layouts.food import place_food101
from data_prep.layouts.pets import place_pets

__all__ = [
    "place_aircraft",
    "place_birdsnap",
    "place_cars",
    "place_cifar10",
    "place_cifar100",
    "place_flowers102",
    "place_food101",
    "place_pets",
]
