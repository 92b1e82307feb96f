"""What lies in the sources: every file by name and place, whatever it means.

A source is a folder, a tar, or tars inside either. Its files are read by place: `offset` and
`size` inside a container, which is a tar, a spool (what was inside a gzip) or a folder.
"""

import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from data_prep.columns import Table, TableWriter

MEMBER = np.dtype([("name_end", "<u8"), ("offset", "<u8"), ("size", "<u8"), ("container", "<u4")])
REFUSED = "refused"
"""The list of a table that holds Notes."""
_FOLDERS = "folders"
_MAX_OPEN = 300
"""More than a spool has buckets, and well under the usual limit of 1,024 open files."""


class Place(NamedTuple):
    """The bytes of one file: `offset`..`offset + size` of container number `container`."""

    name: str
    container: int
    offset: int
    size: int


class Container(TypedDict):
    """Where places lie: a file, or a folder (then the name without `strip` is the path in it)."""

    path: str
    strip: str


class Note(NamedTuple):
    """A file that was left out, repaired or is odd: its name, a short kind, the whole reason."""

    file: str
    kind: str
    reason: str


class Notes:
    """The notes that a table keeps: read from its file each time, never all in memory."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __iter__(self) -> Iterator[Note]:
        return (Note(*fields) for fields in self._table.lines(REFUSED))

    def __len__(self) -> int:
        return self._table.num_lines(REFUSED)


class Catalogue(Table):
    """All files of the sources, in the order in which they were found (sorted in folders)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, MEMBER)
        self.containers: list[Container] = self.about["containers"]  # type: ignore[assignment]
        self.fingerprint = str(self.about["fingerprint"])
        """Changes when a source does."""

    @property
    def refused(self) -> Notes:
        """Members and files that are no files to be taken up."""
        return Notes(self)

    @functools.cached_property
    def folders(self) -> list[str]:
        """Folders and tars that exist, full or empty, as names without a slash at the end."""
        return list(self.lines(_FOLDERS))

    def place(self, row: int) -> Place:
        """Return the place of a row."""
        member = self.rows[row]
        where = int(member["container"]), int(member["offset"]), int(member["size"])
        return Place(self.name(row), *where)

    def places(self) -> Iterator[Place]:
        """Yield all places in order."""
        return map(self.place, range(len(self)))


class Reader:
    """Reads bytes by place; keeps a few containers open."""

    def __init__(self, containers: list[Container]) -> None:
        self._containers = containers
        self._open: dict[int, int] = {}
        self._folders: dict[int, bool] = {}

    def read(self, place: Place) -> bytes:
        """Return the bytes of a place; OSError where they cannot be read."""
        if self._is_folder(place.container):
            container = self._containers[place.container]
            path = Path(container["path"]) / place.name.removeprefix(container["strip"])
            with path.open("rb") as file:
                file.seek(place.offset)
                return file.read(place.size)
        return os.pread(self._handle(place.container), place.size, place.offset)

    def close(self) -> None:
        """Close all containers."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _is_folder(self, number: int) -> bool:
        if number not in self._folders:
            self._folders[number] = Path(self._containers[number]["path"]).is_dir()
        return self._folders[number]

    def _handle(self, number: int) -> int:
        if number not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self.close()
            path = self._containers[number]["path"]
            self._open[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[number]


class CatalogueWriter(TableWriter):
    """Collects what a source holds; `add(name, offset, size, container)` is a row."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, MEMBER, (REFUSED, _FOLDERS))
        self.containers: list[Container] = []
        self.folders: set[str] = set()

    def container(self, path: Path, strip: str = "") -> int:
        """Return the number of a new container."""
        self.containers.append({"path": str(path), "strip": strip})
        return len(self.containers) - 1

    @property
    def num_noted(self) -> int:
        """Folders and refused files so far."""
        return len(self.folders) + self.num_lines[REFUSED]

    def refuse(self, notes: Iterable[Note]) -> None:
        """Keep why files are left out."""
        for note in notes:
            self.add_line(REFUSED, note)

    def finish(self, fingerprint: str) -> None:
        """Keep what belongs to the whole; call it last, inside the `with`."""
        for folder in sorted(self.folders):
            self.add_line(_FOLDERS, folder)
        self.about = {"containers": self.containers, "fingerprint": fingerprint}
