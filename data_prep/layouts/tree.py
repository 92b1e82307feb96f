"""The shape of a tree of folders, found from all names: what lies around the folders of classes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.catalogue import Catalogue
from data_prep.tar import printable

ARCHIVES = (".tar", ".tar.gz", ".tgz")
"""Endings of archives, which stand for folders."""
_WORDNET = re.compile(r"(n[0-9]{8})_")
_SYNSET = re.compile(r"n[0-9]{8}")


@dataclass
class Tree:
    """One source: its shape, as a first look at all names finds it."""

    prefix: str
    """What all its names start with."""
    containers: set[int]
    is_archive: bool
    """Whether all its files lie in archives."""
    tops: tuple[set[str], ...] = field(default_factory=lambda: (set(), set(), set()))
    """The names of folders at each of the first depths."""
    depth: int = 0
    """Most parts of a path, the file included."""
    num_files: int = 0
    num_labelled: int = 0
    """Files whose class a list or, lying flat, their own name tells."""
    first: str = ""
    """The name of its first file."""
    skip: int = 0
    """How many folders around everything are ignored."""
    splits: dict[str, str] = field(default_factory=dict)
    """Folder -> split; empty: the folders are classes."""

    @property
    def has_folders(self) -> bool:
        """Whether a file lies in a folder that is not around everything."""
        return self.depth > self.skip + 1

    def top_folders(self) -> set[str]:
        """Return the folders that are splits or classes."""
        return {plain(top) for top in self.tops[self.skip]}

    def ignore_around(self, known: frozenset[str]) -> None:
        """Ignore what lies around all folders of classes: a folder, or it and its archive.

        `known` are names of split folders, which are never ignored; nor is a folder's own tree.
        """
        for tops in self.tops[:2] if self.is_archive else ():
            top = next(iter(tops), "")
            is_told = plain(top) in known or _SYNSET.fullmatch(plain(top))
            # The classes' folders are yet to come below it.
            if len(tops) != 1 or is_told or self.depth < self.skip + 3:
                return
            self.skip += 1
            if plain(top) == top:
                return


def shape(catalogue: Catalogue, rows: range, prefix: str, labels: Mapping[str, str] | None) -> Tree:
    """Return the shape of the source that has these rows of a catalogue."""
    numbers = set(catalogue.rows["container"][rows.start : rows.stop].tolist())
    paths = (Path(catalogue.containers[number]["path"]) for number in numbers)
    tree = Tree(prefix, numbers, not any(path.is_dir() for path in paths), num_files=len(rows))
    last: str | None = None
    for name in map(catalogue.name, rows):
        folder, _, file = name[len(prefix) :].rpartition("/")
        if folder != last:
            parts = parts_of(folder)
            for names, part in zip(tree.tops, parts, strict=False):
                names.add(part)
            tree.depth = max(tree.depth, len(parts) + 1)
            last = folder
        if labels is not None:
            tree.num_labelled += stem_of(file) in labels
        elif not folder:
            tree.num_labelled += bool(wordnet_of(file))
    if rows:
        tree.first = printable(catalogue.name(rows.start)[len(prefix) :])
    return tree


def parts_of(folder: str) -> list[str]:
    """Return the folders of a path, as they can be shown."""
    return [part for part in printable(folder).split("/") if part not in ("", ".")]


def plain(part: str) -> str:
    """Return the name of a folder, or of the archive that stands for it without its ending."""
    for ending in ARCHIVES:
        if part.lower().endswith(ending) and len(part) > len(ending):
            return part[: -len(ending)]
    return part


def wordnet_of(file: str) -> str:
    """Return the WordNet id before the first underscore of a file's name, or nothing."""
    found = _WORDNET.match(file)
    return found[1] if found else ""


def stem_of(file: str) -> str:
    """Return a file's name up to its first dot."""
    return file.partition(".")[0]
