"""The classes of ImageNet-1k's validation images, from whichever list came with them.

devkit     data/ILSVRC2012_validation_ground_truth.txt: line n is the ILSVRC2012_ID of image n,
           and data/meta.mat says which synset that is (ids are not in the order of the synsets)
synsets    imagenet_2012_validation_synset_labels.txt: line n is the synset of image n
Kaggle     LOC_val_solution.csv, or val_map.txt: lines `file synset ...` in any order
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from data_prep.catalogue import Place, Reader
from data_prep.layouts.matfile import MatFile
from data_prep.layouts.synsets import PAGE, SYNSET
from data_prep.tar import printable
from pipeline.spec import Misuse

DEVKIT, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
SYNSETS = "imagenet_2012_validation_synset_labels.txt"
MAPS = ("LOC_val_solution.csv", "val_map.txt")
FILES = frozenset({DEVKIT, META, SYNSETS, *MAPS})
NEEDED = f"ILSVRC2012_devkit_t12.tar.gz, {SYNSETS} or {MAPS[0]}"
NUM_IDS = 1000
"""Synsets with an image; ids beyond are inner nodes of WordNet."""
MAX_BYTES = 32 << 20
"""The largest of these lists has 3 MB."""
_VAL = re.compile(r"ILSVRC2012_val_([0-9]{8})(?:\.JPEG)?", re.IGNORECASE)
_SEPARATOR = re.compile(r"[,\s]+")
_MAX_DIGITS = 9


def val_number(file: str) -> int | None:
    """Return n of ILSVRC2012_val_0000000n.JPEG; None for any other file."""
    found = _VAL.fullmatch(file)
    return int(found[1]) if found else None


def read_truth(
    lists: Mapping[str, Sequence[Place]], reader: Reader, numbers: Iterable[int]
) -> dict[int, str]:
    """Return the synset of each validation image, by the number in its name.

    Args:
        lists: the files of `FILES` that the sources hold, by file name.
        numbers: of the validation images that are there.

    Raises:
        Misuse: no list is there; one is damaged, gives other images, or contradicts another.
    """
    given = sorted(numbers)
    truths = [
        *(_from_devkit(place, lists.get(META, ()), reader, given) for place in _of(lists, DEVKIT)),
        *(_from_synsets(place, reader, given) for place in _of(lists, SYNSETS)),
        *(_from_map(place, reader, given) for name in MAPS for place in _of(lists, name)),
    ]
    if not truths:
        raise Misuse(
            f"the source has {len(given):,} validation images and no list of their classes; put "
            f"one of {NEEDED} beside them ({PAGE})"
        )
    (name, truth), *others = truths
    for other_name, other in others:
        _check_agree(name, truth, other_name, other)
    return truth


_Truth = tuple[str, dict[int, str]]
"""Which list says so, and number -> synset."""


def _of(lists: Mapping[str, Sequence[Place]], name: str) -> Sequence[Place]:
    return lists.get(name, ())


def _from_devkit(
    place: Place, metas: Sequence[Place], reader: Reader, given: Sequence[int]
) -> _Truth:
    folder = PurePosixPath(place.name).parent
    beside = [meta for meta in metas if PurePosixPath(meta.name).parent == folder]
    if not beside:
        raise _bad(
            place,
            f"{META}, which says what its ids mean, is not beside it; take both from "
            f"the folder data of ILSVRC2012_devkit_t12.tar.gz ({PAGE})",
        )
    synsets = _read_meta(beside[0], reader)
    lines = _read_lines(place, reader)
    _check_count(place, len(lines), given)
    truth: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        value = int(line) if line.isdecimal() and len(line) <= _MAX_DIGITS else 0
        if value not in synsets:
            raise _wrong(place, number, line, f"an id from 1 to {NUM_IDS} that {META} has")
        truth[number] = synsets[value]
    return printable(place.name), truth


def _read_meta(place: Place, reader: Reader) -> dict[int, str]:
    """Return ILSVRC2012_ID -> synset, of those with images."""
    meta = MatFile(_read(place, reader), printable(place.name))
    ids = meta.integer_column("synsets", "ILSVRC2012_ID")
    names = meta.text_column("synsets", "WNID")
    synsets: dict[int, str] = {}
    for value, name in zip(ids, names, strict=True):
        if not 1 <= value <= NUM_IDS:
            continue
        if value in synsets or not SYNSET.fullmatch(name):
            raise _bad(
                place,
                f"ILSVRC2012_ID {value} is {name!r}, expected one synset for each; "
                f"get the devkit again from {PAGE}",
            )
        synsets[value] = name
    return synsets


def _from_synsets(place: Place, reader: Reader, given: Sequence[int]) -> _Truth:
    lines = _read_lines(place, reader)
    _check_count(place, len(lines), given)
    for number, line in enumerate(lines, 1):
        if not SYNSET.fullmatch(line):
            raise _wrong(place, number, line, "a synset like n01440764")
    return printable(place.name), dict(enumerate(lines, 1))


def _from_map(place: Place, reader: Reader, given: Sequence[int]) -> _Truth:
    truth: dict[int, str] = {}
    for number, line in enumerate(_read_lines(place, reader), 1):
        file, *fields = _SEPARATOR.split(line)
        image = val_number(file.rpartition("/")[2])
        if image is None:
            if number == 1:  # the names of columns
                continue
            raise _wrong(place, number, line, "ILSVRC2012_val_ and eight digits, then the synset")
        if not fields or not SYNSET.fullmatch(fields[0]):
            raise _wrong(place, number, line, "a synset like n01440764 behind the file")
        if truth.setdefault(image, fields[0]) != fields[0]:
            raise _wrong(place, number, line, f"{truth[image]}, as in a line before it")
    lost = next((number for number in given if number not in truth), None)
    if lost is not None:
        problem = f"it has no line for {_file(lost)}; get it again, or the images that belong to it"
        raise _bad(place, problem)
    if len(truth) != len(given):
        raise _other_count(place, len(truth), given)
    return printable(place.name), truth


def _check_count(place: Place, num_lines: int, given: Sequence[int]) -> None:
    """Refuse a list by position that is not for exactly the images 1, 2, 3, ..."""
    if num_lines != len(given):
        raise _other_count(place, num_lines, given)
    stranger = next((found for n, found in enumerate(given, 1) if found != n), None)
    if stranger is not None:
        raise _bad(
            place,
            f"it is for the images 1 to {num_lines:,} in order, and the source has "
            f"{_file(stranger)} at another place; get the images again from {PAGE}",
        )


def _check_agree(
    name: str, truth: Mapping[int, str], other_name: str, other: Mapping[int, str]
) -> None:
    for number, synset in truth.items():
        if other[number] != synset:
            raise Misuse(
                f"{_file(number)} is {synset} in {name} and {other[number]} in {other_name}; "
                "leave the wrong list away"
            )


def _read_lines(place: Place, reader: Reader) -> list[str]:
    """Return all lines but empty ones at the end, without space around them."""
    try:
        text = _read(place, reader).decode()
    except UnicodeDecodeError:
        raise Misuse(
            f"{printable(place.name)}: not a text file; get it again from {PAGE}"
        ) from None
    return [line.strip() for line in text.rstrip().split("\n")]


def _read(place: Place, reader: Reader) -> bytes:
    if place.size > MAX_BYTES:
        raise _bad(place, f"{place.size:,} bytes, expected at most {MAX_BYTES:,}")
    try:
        data = reader.read(place)
    except OSError as error:
        raise _bad(place, f"cannot be read: {error.strerror}") from None
    if len(data) != place.size:
        raise _bad(place, f"ends after {len(data):,} of {place.size:,} bytes")
    return data


def _bad(place: Place, problem: str) -> Misuse:
    return Misuse(f"{printable(place.name)}: {problem}")


def _wrong(place: Place, number: int, line: str, expected: str) -> Misuse:
    return _bad(place, f"line {number} is {line[:80]!r}; expected {expected}")


def _other_count(place: Place, count: int, given: Sequence[int]) -> Misuse:
    return _bad(
        place,
        f"it has the classes of {count:,} images, and the source has {len(given):,} validation "
        "images; get the list that belongs to them, or the missing images",
    )


def _file(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"
