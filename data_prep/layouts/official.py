"""Files of an official archive, found by how their paths end, and the images its own lists name.

A source may be the archive itself, a folder with it, or what somebody unpacked: paths differ in
front, so a file is known by its last parts (`meta/train.txt`). Nothing is yielded before every
list, label and image of the set is accounted for.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from data_prep.catalogue import Catalogue, Note, Place, Reader
from data_prep.layouts.matfile import MatFile
from data_prep.population import Item, Placed
from pipeline.spec import Misuse

if TYPE_CHECKING:  # the table of layouts imports this module
    from data_prep.layouts import LayoutOptions

MINIVAL = "minival"
"""The split that a set publishes to choose settings on."""
MAX_FILES = 1_000_000
MAX_LIST_BYTES = 64 << 20
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Images = dict[str, list[Place]]
"""Path from the folder of images on -> the files of that path, one where nothing is odd."""


class About(NamedTuple):
    """What an error says of a set: the name of its layout, its files, where they are published."""

    layout: str
    files: str
    page: str


class Listed(NamedTuple):
    """An image as the set's own lists have it; `path` starts with the folder of images."""

    path: str
    split: str
    cls: str


class Official:
    """The files of one official set in a catalogue.

    Raises:
        Misuse: the source holds more files than such a set has, or an option has no use here.
    """

    def __init__(
        self, catalogue: Catalogue, reader: Reader, options: "LayoutOptions", about: About
    ) -> None:
        if len(catalogue) > MAX_FILES:
            raise Misuse(
                f"the source holds {len(catalogue):,} files, too many for {about.layout}; give "
                f"{about.files}, or name another --layout"
            )
        self.about = about
        self._reader = reader
        self._places = list(catalogue.places())
        _refuse_options(options, self._places, about)

    def find(self, tail: str) -> Place | None:
        """Return the file whose path ends in `tail`; its folder may be the source itself.

        Raises:
            Misuse: there are several, and they differ.
        """
        found = [place for place in self._places if _ends_in(place.name, tail)]
        for other in found[1:]:
            if other.size != found[0].size or self.read(other) != self.read(found[0]):
                raise self.twice(tail, found[0], other)
        return found[0] if found else None

    def need(self, tail: str) -> Place:
        """Return the file whose path ends in `tail`, or raise Misuse with what to get."""
        found = self.find(tail)
        if found is None:
            raise self.missing(f"no file {tail}")
        return found

    def missing(self, what: str) -> Misuse:
        """Return the error for a source that lacks something."""
        tops = sorted({place.name.partition("/")[0] for place in self._places})
        there = ", ".join(tops[:8]) + (f" and {len(tops) - 8:,} more" if len(tops) > 8 else "")
        return Misuse(
            f"--layout {self.about.layout}: there is {what} in the source, which has {there}; it "
            f"needs {self.about.files} ({self.about.page})"
        )

    def damaged(self, name: str, problem: str) -> Misuse:
        """Return the error for a file of the set that cannot be as published."""
        return Misuse(f"{name}: {problem}; get it again from {self.about.page}")

    def twice(self, path: str, one: Place, other: Place) -> Misuse:
        """Return the error for a file that the source holds twice."""
        return Misuse(
            f"--layout {self.about.layout}: {path} stands twice in the source, as {one.name} and "
            f"as {other.name}; leave one of them there, or give the archive itself"
        )

    def read(self, place: Place, most_bytes: int = MAX_LIST_BYTES) -> bytes:
        """Return the bytes of a file that is not an image.

        Raises:
            Misuse: it is larger than such a file can be, or cannot be read whole.
        """
        if place.size > most_bytes:
            raise self.damaged(place.name, f"{place.size:,} bytes, expected at most {most_bytes:,}")
        try:
            data = self._reader.read(place)
        except OSError as error:
            raise Misuse(f"{place.name}: cannot be read: {error.strerror}") from None
        if len(data) != place.size:
            raise self.damaged(place.name, f"ends after {len(data):,} of {place.size:,} bytes")
        return data

    def mat(self, tail: str) -> MatFile:
        """Return the variables of a .mat file."""
        place = self.need(tail)
        return MatFile(self.read(place), place.name)

    def lines(self, tail: str) -> list[str]:
        """Return the lines of a text file that are not empty, without space around them."""
        data = self.read(self.need(tail))
        try:
            text = data.decode()
        except UnicodeDecodeError:  # lists of 2009 to 2015 may be older than the habit of UTF-8
            text = data.decode("latin-1")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if not lines:
            raise self.damaged(tail, "the file is empty")
        return lines

    def classes(self, names: Iterable[str], tail: str) -> tuple[str, ...]:
        """Return class names as they stand in a file, in the order of the official labels."""
        classes = tuple(name.strip() for name in names)
        if not classes:
            raise self.damaged(tail, "it names no class")
        if len(set(classes)) != len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise self.damaged(tail, f"class {twice!r} stands twice")
        for name in classes:
            if not name or not name.isprintable():
                raise self.damaged(tail, f"{name!r} is no name of a class")
        return classes

    def label(self, classes: Sequence[str], number: int, where: str) -> str:
        """Return the class of an official label, which counts from 1."""
        if not 1 <= number <= len(classes):
            raise self.damaged(where, f"label {number}, expected 1 to {len(classes)}")
        return classes[number - 1]

    def images(self, *folders: str) -> Images:
        """Return all files below folders of these names; a path starts with the folder's name."""
        images: Images = {}
        for place in self._places:
            whole = f"/{place.name}"
            for folder in folders:
                _, mark, path = whole.rpartition(f"/{folder}/")
                if mark:
                    images.setdefault(f"{folder}/{path}", []).append(place)
        if not images:
            raise self.missing(f"no image in a folder {' or '.join(folders)}")
        return images

    def placed(
        self,
        listed: Sequence[Listed],
        images: Images,
        classes: tuple[str, ...],
        absent: str = "",
    ) -> Placed:
        """Return the items of a set, once its lists and its images agree.

        Images that no list names are refused by name. Listed images that are not there are a
        mistake, or refused by name with the reason `absent`.
        """
        self._check_listed(listed, images)
        present = [one for one in listed if one.path in images]
        lost = [one for one in listed if one.path not in images]
        if lost and (not absent or not present):
            raise self.missing(f"no {lost[0].path} ({len(lost):,} images of its lists missing)")
        refused = [Note(one.path, "missing image", absent) for one in lost]
        refused += _unlisted(listed, images)
        items = (Item(images[path][0], split, cls) for path, split, cls in present)
        return Placed(items=items, classes=classes, refused=refused)

    def _check_listed(self, listed: Sequence[Listed], images: Images) -> None:
        seen: dict[str, str] = {}
        for path, split, _ in listed:
            if path in seen:
                raise self.damaged(path, f"listed twice, for {seen[path]} and for {split}")
            seen[path] = split
            found = images.get(path, ())
            if len(found) > 1:
                raise self.twice(path, found[0], found[1])


def _refuse_options(options: "LayoutOptions", places: Iterable[Place], about: About) -> None:
    """Refuse what would have no effect: an official set brings its own splits."""
    given = {"--split": options.splits is not None, "--eval-labels": bool(options.eval_labels)}
    if options.eval_prefix:
        given["--eval-source"] = any(p.name.startswith(options.eval_prefix) for p in places)
    for option, is_given in given.items():
        if is_given:
            raise Misuse(
                f"{option}: --layout {about.layout} takes its splits from its own files; leave "
                f"{option} away, or use --holdout"
            )


def _ends_in(name: str, tail: str) -> bool:
    if "/" not in name:
        return name == tail.rpartition("/")[2]
    return name == tail or name.endswith(f"/{tail}")


def _unlisted(listed: Iterable[Listed], images: Mapping[str, list[Place]]) -> list[Note]:
    known = {one.path for one in listed}
    reason = "no list of the set gives it a split"
    return [
        Note(place.name, "not in the lists", reason)
        for path, places in images.items()
        for place in places
        if path not in known and path.lower().endswith(_IMAGE_SUFFIXES)
    ]
