"""Which split and class an image belongs to, told from its path alone.

train/CLASS/any/name.jpg   split folder, then the class: the first folder below it
CLASS/name.jpg             one population, all train until something is held out
around/CLASS/name.jpg      in a tar, one folder around everything is ignored
CLASS.tar/name.jpg         a tar of a class counts as its folder
n01440764_tench.JPEG       flat: the WordNet id before the first underscore
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from data_prep.archive import printable
from data_prep.sources import Listing
from pipeline.spec import Misuse

TRAIN, EVAL = "train", "eval"
_TRAIN_FOLDERS = frozenset({"train", "training"})
_EVAL_FOLDERS = frozenset({"eval", "val", "valid", "validation", "test", "testing"})
_WORDNET = re.compile(r"(n\d{8})_")


@dataclass
class Placed:
    """For each row of a listing its split and class (None: left out), and what was seen."""

    splits: list[str | None] = field(default_factory=list)
    classes: list[str | None] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    """Class folders that exist, full or empty: class -> path of a folder."""
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    num_ignored: int = 0


def place(
    listing: Listing, split_of: dict[str, str] | None, labels: dict[str, str] | None = None
) -> Placed:
    """Give every row its split and class.

    Args:
        listing: the source.
        split_of: folder -> split; None finds train and test folders by name, {} means none.
        labels: file stem -> class, for files that lie flat (ImageNet's validation set).

    Raises:
        Misuse: the split folders are ambiguous or not there.
    """
    in_tar = listing.root.is_file()
    paths = [_parts(item.name) for item in listing.places]
    skip = 1 if in_tar and _is_wrapped(paths, split_of) else 0
    tops = {parts[skip] for parts in paths if len(parts) > skip + 1}
    if split_of is None:
        split_of = _find_splits(listing.root, tops)
    for folder in split_of:
        if folder not in tops:
            raise Misuse(
                f"--split: there is no folder '{folder}' in the source; there are: "
                f"{', '.join(sorted(tops)[:20]) or 'none'}"
            )
    placed = Placed()
    for parts in paths:
        _place_one(placed, parts[min(skip, len(parts) - 1) :], split_of, labels)
    for folder in sorted(listing.folders):
        below = _parts(folder)[skip:]
        if split_of and (not below or split_of.get(below.pop(0)) != TRAIN):
            continue
        if below:
            placed.folders.setdefault(below[0], printable(folder))
    return placed


def check_classes(placed: Placed, classes: tuple[str, ...]) -> None:
    """Raise Misuse where a class that was asked for is not there."""
    found = {name for name in placed.classes if name} | set(placed.folders)
    for name in classes:
        if name not in found:
            near = ", ".join(get_close_matches(name, found, n=3, cutoff=0.0))
            raise Misuse(f"--classes: the source has no class '{name}'; similar: {near}")


def select(listing: Listing, placed: Placed, classes: tuple[str, ...]) -> None:
    """Drop all rows without a class, and those of other classes where some are asked for."""
    wanted = set(classes) or {name for name in placed.classes if name}
    rows = [row for row, name in enumerate(placed.classes) if name in wanted]
    listing.places = [listing.places[row] for row in rows]
    placed.splits = [placed.splits[row] for row in rows]
    placed.classes = [placed.classes[row] for row in rows]


def _parts(name: str) -> list[str]:
    parts = [part for part in printable(name).split("/") if part not in ("", ".")]
    return [part.removesuffix(".tar") for part in parts]


def _is_wrapped(paths: list[list[str]], split_of: dict[str, str] | None) -> bool:
    """Tell whether one folder, which is no split, lies around all folders of classes."""
    known = _TRAIN_FOLDERS | _EVAL_FOLDERS if split_of is None else frozenset(split_of)
    tops = {parts[0] for parts in paths if len(parts) > 1}
    return len(tops) == 1 and not tops & known and max(map(len, paths)) >= 3


def _find_splits(root: Path, tops: set[str]) -> dict[str, str]:
    train, evals = tops & _TRAIN_FOLDERS, tops & _EVAL_FOLDERS
    if tops and tops == train | evals and len(train) == 1 and len(evals) <= 1:
        return dict.fromkeys(train, TRAIN) | dict.fromkeys(evals, EVAL)
    if train and evals:
        raise Misuse(
            f"{root}: its folders {', '.join(sorted(tops)[:8])} may be splits or classes; say "
            f"which with --split train={min(train)} eval={min(evals)}, or --split none"
        )
    return {}


def _place_one(
    placed: Placed, parts: list[str], split_of: dict[str, str], labels: dict[str, str] | None
) -> None:
    split, file = TRAIN, parts[-1]
    if split_of:
        if parts[0] not in split_of or len(parts) < 2:
            placed.num_ignored += 1
            _append(placed, None, None)
            return
        split, parts = split_of[parts[0]], parts[1:]
    wordnet = _WORDNET.match(file)
    if labels is not None:
        name = labels.get(file.partition(".")[0])
        problem = "its name is not in the file of labels"
    elif len(parts) > 1:
        name, problem = parts[0], ""
    else:
        name = wordnet.group(1) if wordnet else None
        problem = "lies in no class folder, and its name starts with no WordNet id"
    if name is None:
        placed.refused.append(("/".join(parts), "no class", problem))
    _append(placed, None if name is None else split, name)


def _append(placed: Placed, split: str | None, name: str | None) -> None:
    placed.splits.append(split)
    placed.classes.append(name)


def read_labels(path: Path) -> dict[str, str]:
    """Read lines `file class ...` or `file,class ...` (Kaggle's LOC_val_solution.csv): stem, class.

    Raises:
        Misuse: the file cannot be read or a line has one field only.
    """
    labels: dict[str, str] = {}
    for number, fields in _lines(path):
        if len(fields) < 2:
            raise Misuse(f"{path}: line {number} is {fields[0]!r}; expected `file class`")
        labels[fields[0].partition(".")[0]] = fields[1]
    return labels


def read_names(path: Path) -> dict[str, str]:
    """Read lines `class name for people` (LOC_synset_mapping.txt, words.txt)."""
    named: dict[str, str] = {}
    for number, fields in _lines(path, maxsplit=1):
        if len(fields) < 2:
            raise Misuse(f"{path}: line {number} is {fields[0]!r}; expected `class name`")
        named[fields[0]] = fields[1]
    return named


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names, one a line, in index order."""
    return tuple(" ".join(fields) for _, fields in _lines(path, maxsplit=1))


def _lines(path: Path, maxsplit: int = 0) -> Iterable[tuple[int, list[str]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"{path}: cannot be read as text: {error}") from None
    separator = r"\s+" if maxsplit else r"[,\s]+"
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, re.split(separator, line.strip(), maxsplit=maxsplit)
