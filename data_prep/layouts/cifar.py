"""CIFAR-10 and CIFAR-100 as distributed, in the python and the binary form.

An image is a slice of 3,072 bytes of its batch: the planes of red, green and blue. Classes are in
the official order; CIFAR-100 has its 100 fine ones. Published counts: 50,000 train, 10,000 eval.
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_prep.catalogue import Catalogue, Place, Reader
from data_prep.layouts.official import About, Official
from data_prep.layouts.pickled import MAX_BYTES, Pickled
from data_prep.population import EVAL, TRAIN, Item, Placed

if TYPE_CHECKING:
    from data_prep.layouts import LayoutOptions

IMAGE_BYTES = 3 * 32 * 32
_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_PLAIN_NAME = re.compile(r"[\w.+'()-]{1,200}")


class _Form(NamedTuple):
    """How one archive is laid out; `header` is the bytes before an image, 0 for pickles."""

    train: tuple[str, ...]
    test: str
    names: str
    header: int
    names_key: str = ""
    labels_key: str = ""


class _Batch(NamedTuple):
    """One file of images: the first starts at `place.offset + first`, each next `stride` later."""

    name: str
    split: str
    place: Place
    first: int
    stride: int
    labels: Sequence[int]
    names: Sequence[str]
    """File names of the images; empty where the batch has none."""


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))
_CIFAR10 = (
    _Form(_FIVE, "test_batch", "batches.meta", 0, "label_names", "labels"),
    _Form(tuple(f"{name}.bin" for name in _FIVE), "test_batch.bin", "batches.meta.txt", 1),
)
_CIFAR100 = (
    _Form(
        ("cifar-100-python/train",),
        "cifar-100-python/test",
        "cifar-100-python/meta",
        0,
        "fine_label_names",
        "fine_labels",
    ),
    _Form(
        ("cifar-100-binary/train.bin",),
        "cifar-100-binary/test.bin",
        "cifar-100-binary/fine_label_names.txt",
        2,  # the coarse label, then the fine one
    ),
)


def place_cifar10(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place CIFAR-10: five batches of train and one of eval, 10 classes.

    Raises:
        Misuse: a batch is missing or is not as published; said before any image is yielded.
    """
    about = About("cifar10", "cifar-10-python.tar.gz or cifar-10-binary.tar.gz", _PAGE)
    return _place(catalogue, Official(catalogue, reader, options, about), _CIFAR10)


def place_cifar100(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place CIFAR-100 with its fine labels; otherwise as `place_cifar10`."""
    about = About("cifar100", "cifar-100-python.tar.gz or cifar-100-binary.tar.gz", _PAGE)
    return _place(catalogue, Official(catalogue, reader, options, about), _CIFAR100)


def _place(catalogue: Catalogue, official: Official, forms: Sequence[_Form]) -> Placed:
    form = _form(official, forms)
    classes, rows = _classes(official, form)
    read = _read_binary if form.header else _read_pickled
    batches = []
    for tail, split in [*((tail, TRAIN) for tail in form.train), (form.test, EVAL)]:
        batch = read(official, form, tail, split)
        _check(official, batch, len(classes), rows)
        batches.append(batch._replace(place=_as_file(catalogue, batch.place)))
    return Placed(items=_items(batches, classes), classes=classes)


def _form(official: Official, forms: Sequence[_Form]) -> _Form:
    """Return the form that the source has; the pickled one where it has both."""
    for form in forms:
        if any(official.find(tail) for tail in (*form.train, form.test)):
            return form
    raise official.missing("no batch of images")


def _classes(official: Official, form: _Form) -> tuple[tuple[str, ...], int | None]:
    """Return the class names, and how many images a batch has where the set says so."""
    if form.header:
        return official.classes(official.lines(form.names), form.names), None
    place = official.need(form.names)
    meta = Pickled(official.read(place), place.name)
    rows = meta.integer("num_cases_per_batch") if "num_cases_per_batch" in meta else None
    return official.classes(meta.texts(form.names_key), form.names), rows


def _read_pickled(official: Official, form: _Form, tail: str, split: str) -> _Batch:
    place = official.need(tail)
    pickled = Pickled(official.read(place, MAX_BYTES), place.name)
    array, labels = pickled.array("data"), pickled.integers(form.labels_key)
    if len(array.shape) != 2 or array.shape[1] != IMAGE_BYTES:
        raise official.damaged(place.name, f"its images have the shape {array.shape}")
    if array.shape[0] != len(labels):
        problem = f"it has {array.shape[0]:,} images and {len(labels):,} labels"
        raise official.damaged(place.name, problem)
    names = pickled.texts("filenames") if "filenames" in pickled else []
    if names and len(names) != len(labels):
        problem = f"it has {len(labels):,} images and {len(names):,} file names"
        raise official.damaged(place.name, problem)
    name = tail.rpartition("/")[2]
    return _Batch(name, split, place, array.start, IMAGE_BYTES, labels, names)


def _read_binary(official: Official, form: _Form, tail: str, split: str) -> _Batch:
    place = official.need(tail)
    stride = form.header + IMAGE_BYTES
    if place.size % stride:
        problem = f"{place.size:,} bytes are no multiple of {stride:,}, the bytes of one image"
        raise official.damaged(place.name, problem)
    labels = official.read(place, MAX_BYTES)[form.header - 1 :: stride]
    name = tail.rpartition("/")[2]
    return _Batch(name, split, place, form.header, stride, labels, [])


def _check(official: Official, batch: _Batch, num_classes: int, rows: int | None) -> None:
    """Refuse a batch that is empty, of another count or with labels that no class has."""
    name, count = batch.place.name, len(batch.labels)
    if not count:
        raise official.damaged(name, "it has no image")
    if rows is not None and count != rows:
        raise official.damaged(name, f"it has {count:,} images, the set's own file says {rows:,}")
    for row, label in enumerate(batch.labels):
        if not 0 <= label < num_classes:
            problem = f"image {row} has the label {label}, expected 0 to {num_classes - 1}"
            raise official.damaged(name, problem)


def _as_file(catalogue: Catalogue, place: Place) -> Place:
    """Return the place of a file that lies in a folder as a container of its own.

    In a folder a place is found by its name, but these images have names that no file has.
    """
    container = catalogue.containers[place.container]
    if not Path(container["path"]).is_dir():
        return place
    path = Path(container["path"]) / place.name.removeprefix(container["strip"])
    catalogue.containers.append({"path": str(path), "strip": ""})
    return place._replace(container=len(catalogue.containers) - 1)


def _items(batches: Sequence[_Batch], classes: tuple[str, ...]) -> Iterator[Item]:
    for batch in batches:
        taken: set[str] = set()
        for row, label in enumerate(batch.labels):
            name = _name(batch.names[row] if batch.names else "", row, taken)
            offset = batch.place.offset + batch.first + row * batch.stride
            place = Place(f"{batch.name}/{name}", batch.place.container, offset, IMAGE_BYTES)
            yield Item(place, batch.split, classes[label], "planes32")


def _name(name: str, row: int, taken: set[str]) -> str:
    """Return the image's own file name where it is one and unique in its batch."""
    if name in taken or not _PLAIN_NAME.fullmatch(name):
        name = f"{row:05d}.png"
    while name in taken:
        name = f"{row:05d}-{name}"
    taken.add(name)
    return name
