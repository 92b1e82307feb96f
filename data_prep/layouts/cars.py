"""Stanford Cars, in either published form.

cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat; or car_ims.tgz
and cars_annos.mat. Splits as published: `train` 8,144 and `eval` 8,041, 196 classes in the order of
`class_names`. Boxes are not used. The set's own page (ai.stanford.edu/~jkrause/cars) is gone.
"""

from typing import TYPE_CHECKING

from data_prep.catalogue import Catalogue, Reader
from data_prep.layouts.official import About, Listed, Official
from data_prep.population import EVAL, TRAIN, Placed

if TYPE_CHECKING:
    from data_prep.layouts import LayoutOptions

_ABOUT = About(
    "cars",
    "cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat, or "
    "car_ims.tgz and cars_annos.mat",
    "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, or a mirror of it",
)
_PARTS = {
    "cars_train": ("cars_train_annos.mat", TRAIN),
    "cars_test": ("cars_test_annos_withlabels.mat", EVAL),
}


def place_cars(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place Stanford Cars by its annotations.

    Raises:
        Misuse: an archive is missing, or images and annotations do not agree.
    """
    official = Official(catalogue, reader, options, _ABOUT)
    if official.find("cars_annos.mat"):
        return _place_whole(official)
    return _place_parts(official)


def _place_parts(official: Official) -> Placed:
    """Place the form of two archives of images; a file name is unique in its archive only."""
    classes = _classes(official, "cars_meta.mat")
    listed: list[Listed] = []
    for folder, (tail, split) in _PARTS.items():
        mat = official.mat(tail)
        numbers = mat.integer_column("annotations", "class")
        names = mat.text_column("annotations", "fname")
        for name, number in zip(names, numbers, strict=True):
            cls = official.label(classes, number, f"{tail}, image {name}")
            listed.append(Listed(f"{folder}/{name}", split, cls))
    return official.placed(listed, official.images(*_PARTS), classes)


def _place_whole(official: Official) -> Placed:
    """Place the form of one archive, whose annotations say which images are to test on."""
    tail = "cars_annos.mat"
    classes = _classes(official, tail)
    mat = official.mat(tail)
    paths = mat.text_column("annotations", "relative_im_path")
    numbers = mat.integer_column("annotations", "class")
    tests = mat.integer_column("annotations", "test")
    listed: list[Listed] = []
    for path, number, test in zip(paths, numbers, tests, strict=True):
        cls = official.label(classes, number, f"{tail}, image {path}")
        listed.append(Listed(path, EVAL if test else TRAIN, cls))
    return official.placed(listed, official.images("car_ims"), classes)


def _classes(official: Official, tail: str) -> tuple[str, ...]:
    return official.classes(official.mat(tail).texts("class_names"), tail)
