"""Which split and class an image belongs to, told from its path alone.

train/CLASS/any/name.jpg   split folder, then the class: the first folder below it
CLASS/name.jpg             one population, all train until something is held out
around/CLASS/name.jpg      in a tar, one folder around everything is ignored
CLASS.tar/name.jpg         a tar of a class counts as its folder
n01440764_tench.JPEG       flat: the WordNet id before the first underscore
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_prep.catalogue import Catalogue, Note, Reader
from data_prep.layouts.tree import Tree, parts_of, plain, shape, stem_of, wordnet_of
from data_prep.population import EVAL, TRAIN, Item, Placed
from pipeline.spec import Misuse

if TYPE_CHECKING:  # the table of layouts imports this module
    from data_prep.layouts import LayoutOptions

MAX_LIST_BYTES = 256 << 20
"""Lists of names or labels; one of 14 million lines has about that size."""
_TRAIN_FOLDERS = frozenset({"train", "training"})
_EVAL_FOLDERS = frozenset({"eval", "val", "valid", "validation", "test", "testing"})
_MAX_SHOWN = 20


class _Where(NamedTuple):
    """What a folder says of the files directly in it; `cls` empty: each file's name does."""

    split: str
    cls: str


def place_folders(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place files by their folders; what has no class is refused by name.

    Args:
        catalogue: the source, and behind it an eval source where there is one.
        reader: not needed, as paths say it all.
        options: folders that are splits, prefix and labels of the eval source.

    Raises:
        Misuse: split folders are ambiguous or not there, no file has a class, or two sources of
            eval images are given.
    """
    del reader
    tree, held = _look(catalogue, options)
    known = _TRAIN_FOLDERS | _EVAL_FOLDERS if options.splits is None else frozenset(options.splits)
    tree.ignore_around(known)
    tops = tree.top_folders()
    tree.splits = _find_splits(tops) if options.splits is None else options.splits
    _check_splits(tree, tops)
    _check_classes(tree)
    if held is not None:
        held.ignore_around(frozenset())
        _check_eval(tree, held, options)
    refused: list[Note] = []
    return Placed(
        items=_items(catalogue, tree, held, options.eval_labels, refused),
        folders=set(_class_folders(catalogue, tree, held)),
        refused=refused,
    )


def _look(catalogue: Catalogue, options: "LayoutOptions") -> tuple[Tree, Tree | None]:
    """Return the shapes of the source and of the eval source (None: there is none)."""
    prefix = options.eval_prefix
    start = _start_of(catalogue, prefix) if prefix else len(catalogue)
    tree = shape(catalogue, range(start), "", None)
    if not prefix:
        return tree, None
    held = shape(catalogue, range(start, len(catalogue)), prefix, options.eval_labels)
    if prefix.rstrip("/") in tree.tops[0] or tree.containers & held.containers:
        raise Misuse(
            f"--eval-source lies in the source, too, or the source has a folder of its own named "
            f"'{prefix.rstrip('/')}': eval images come from one place; move or leave one away"
        )
    return tree, held


def _start_of(catalogue: Catalogue, prefix: str) -> int:
    """Return the first row of the eval source, which comes behind the other."""
    start = len(catalogue)
    while start and catalogue.name(start - 1).startswith(prefix):
        start -= 1
    return start


def _find_splits(tops: set[str]) -> dict[str, str]:
    train, evals = tops & _TRAIN_FOLDERS, tops & _EVAL_FOLDERS
    if tops and tops == train | evals and len(train) == 1 and len(evals) <= 1:
        return dict.fromkeys(train, TRAIN) | dict.fromkeys(evals, EVAL)
    if train and evals:
        raise Misuse(
            f"the source's folders {', '.join(sorted(tops)[:8])} may be splits or classes; say "
            f"which with --split train={min(train)} eval={min(evals)}, or --split none"
        )
    return {}


def _check_splits(tree: Tree, tops: set[str]) -> None:
    for folder in tree.splits:
        if folder not in tops:
            raise Misuse(
                f"--split: there is no folder '{folder}' in the source; there are: "
                f"{', '.join(sorted(tops)[:_MAX_SHOWN]) or 'none'}"
            )


def _check_classes(tree: Tree) -> None:
    """Refuse a source in which nothing tells a class, as ImageNet's val tar."""
    if tree.has_folders or tree.num_labelled:
        return
    raise Misuse(
        f"none of the {tree.num_files:,} files of the source has a class: they lie in no folder "
        f"(the first is {tree.first}); arrange them as CLASS/name.jpg, or name the layout of a "
        "known set with --layout. A flat tar of validation images goes to --eval-source"
    )


def _check_eval(tree: Tree, held: Tree, options: "LayoutOptions") -> None:
    clash = [folder for folder, split in tree.splits.items() if split == EVAL]
    if clash:
        raise Misuse(
            f"eval images come from --eval-source and from the source's folder '{clash[0]}'; leave "
            f"--eval-source away, or ignore the folder with --split train={_train_of(tree)}"
        )
    if options.eval_labels is not None and not held.num_labelled:
        raise Misuse(
            f"--eval-labels: it names none of the {held.num_files:,} files of --eval-source (the "
            f"first is {held.first}); it needs lines `file class`"
        )
    if options.eval_labels is None and not held.has_folders and not held.num_labelled:
        raise Misuse(
            f"--eval-source: its {held.num_files:,} files lie in no class folder (the first is "
            f"{held.first}); name their classes with --eval-labels FILE, lines `file class`"
        )


def _train_of(tree: Tree) -> str:
    return next((folder for folder, split in tree.splits.items() if split == TRAIN), "FOLDER")


def _items(
    catalogue: Catalogue,
    tree: Tree,
    held: Tree | None,
    labels: Mapping[str, str] | None,
    refused: list[Note],
) -> Iterator[Item]:
    """Yield the images; consecutive files of one folder share what was found out about it."""
    last, where, num_ignored = None, None, 0
    first_held = len(catalogue) - held.num_files if held else len(catalogue)
    for row, place in enumerate(catalogue.places()):
        folder, _, file = place.name.rpartition("/")
        if row == first_held:
            last = None
        if folder != last:
            where, last = _where(folder, tree if row < first_held else held), folder
        if where is None:
            num_ignored += 1
            continue
        if labels is not None and row >= first_held:
            cls, problem = labels.get(stem_of(file), ""), "its name is not in the file of labels"
        else:
            cls = where.cls or wordnet_of(file)
            problem = "lies in no class folder, and its name starts with no WordNet id"
        if cls:
            yield Item(place, where.split, cls)
        else:
            refused.append(Note(place.name, "no class", problem))
    if num_ignored:
        some = f"{num_ignored:,} files lie outside the split folders {', '.join(tree.splits)}"
        print(f"{some} and are left out", file=sys.stderr)


def _where(folder: str, tree: Tree | None) -> _Where | None:
    """Return split and class of the files in a folder; None: they are to be ignored."""
    assert tree is not None
    parts = [plain(part) for part in parts_of(f"{folder}/"[len(tree.prefix) :])[tree.skip :]]
    split = EVAL if tree.prefix else TRAIN
    if tree.splits:
        if not parts or parts[0] not in tree.splits:
            return None
        split, parts = tree.splits[parts[0]], parts[1:]
    return _Where(split, parts[0] if parts else "")


def _class_folders(catalogue: Catalogue, tree: Tree, held: Tree | None) -> Iterator[str]:
    """Yield the classes of train that exist as a folder, maybe an empty one."""
    for folder in catalogue.folders:
        is_held = held is not None and f"{folder}/".startswith(held.prefix)
        where = None if is_held else _where(folder, tree)
        if where is not None and where.split == TRAIN and where.cls:
            yield where.cls


def read_labels(path: Path) -> dict[str, str]:
    """Read lines `file class ...` or `file,class ...` (Kaggle's LOC_val_solution.csv): stem, class.

    Raises:
        Misuse: the file cannot be read, a line has one field only, or a file has two classes.
    """
    labels: dict[str, str] = {}
    for number, fields in _lines(path):
        if len(fields) < 2:
            raise Misuse(f"{path}: line {number} is {fields[0]!r}; expected `file class`")
        stem = stem_of(fields[0])
        if labels.setdefault(stem, fields[1]) != fields[1]:
            raise Misuse(
                f"{path}: line {number} gives {stem!r} the class {fields[1]!r}, a line before it "
                f"{labels[stem]!r}; keep one of them"
            )
    return labels


def read_names(path: Path) -> dict[str, str]:
    """Read lines `class name for people` (LOC_synset_mapping.txt, words.txt).

    Raises:
        Misuse: the file cannot be read or a line has one field only.
    """
    named: dict[str, str] = {}
    for number, fields in _lines(path, maxsplit=1):
        if len(fields) < 2:
            raise Misuse(f"{path}: line {number} is {fields[0]!r}; expected `class name`")
        named[fields[0]] = fields[1]
    return named


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names, one a line, in index order; Misuse where the file cannot be read."""
    return tuple(" ".join(fields) for _, fields in _lines(path, maxsplit=1))


def _lines(path: Path, maxsplit: int = 0) -> Iterable[tuple[int, list[str]]]:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise Misuse(f"{path}: more than {MAX_LIST_BYTES >> 20} MB; is this a list?")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"{path}: cannot be read as text: {error}") from None
    separator = r"\s+" if maxsplit else r"[,\s]+"
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, re.split(separator, line.strip(), maxsplit=maxsplit)
