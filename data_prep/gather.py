"""Puts what workers found in the sources into one catalogue, in order, and finds double names."""

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_prep.catalogue import Catalogue, CatalogueWriter, Note
from data_prep.columns import files_of
from data_prep.listing import Found, Region, Rows, check_noted, list_tar
from data_prep.pool import Progress, run
from data_prep.spool import spool
from data_prep.tar import printable

_WORTH_WORKERS = 8
"""Starting workers takes longer than walking fewer tars than this."""
_MAX_WAITING = 1 << 20
"""Files (150 bytes each) that may wait for what comes before them."""

_Task = tuple[int, Region | None]
_IDLE: _Task = -1, None


class Count:
    """The progress of the listing; away while a spool shows its own."""

    def __init__(self) -> None:
        self._shown: Progress | None = None

    def add(self, count: int) -> None:
        """Count that many files more."""
        if self._shown is None:
            self._shown = Progress("list", "files")
            self._shown.__enter__()
        self._shown.add(count)

    def close(self) -> None:
        """End the line; the next file starts another."""
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None


class Collector:
    """Puts what was found into the catalogue, in order, whoever found it first."""

    def __init__(self, writer: CatalogueWriter, spools: Path, seed: int, count: Count) -> None:
        self._writer, self._spools, self._seed, self._count = writer, spools, seed, count
        self._containers: dict[tuple[Path, str], int] = {}
        self._waiting: dict[int, list[Found]] = {}
        self._num_found = self._num_put = self._num_tars = self._num_waiting = 0
        self.hashes = array("q")
        """Of the names of all rows, to find those that occur twice."""

    def collect(self, found: Iterable[Found], workers: int) -> None:
        """Take all that is found in a source; its tars are walked by workers."""
        for number, inside_it in run(_walk, self._tasks(found), workers):
            if number != _IDLE[0]:
                self._put(number, inside_it)

    def _tasks(self, found: Iterable[Found]) -> Iterator[_Task]:
        for each in found:
            number, self._num_found = self._num_found, self._num_found + 1
            if not isinstance(each, Region) or each.is_gzip:
                self._put(number, [each])
            elif self._num_tars < _WORTH_WORKERS:
                self._num_tars += 1
                self._put(number, list_tar(each))
            else:
                yield number, each
            while self._num_waiting > _MAX_WAITING:  # with idle tasks `run` hands out results
                yield _IDLE

    def _put(self, number: int, found: list[Found]) -> None:
        self._waiting[number] = found
        self._num_waiting += _num_files(found)
        while self._num_put in self._waiting:
            ready = self._waiting.pop(self._num_put)
            self._num_waiting -= _num_files(ready)
            for each in ready:
                if isinstance(each, Rows):
                    self._add(each)
                else:
                    self._count.close()
                    self._add_spools(spool(each, self._spools, self._seed))
            self._num_put += 1

    def _add(self, rows: Rows) -> None:
        if rows.names:
            where = rows.path, rows.strip
            if where not in self._containers:
                self._containers[where] = self._writer.container(*where)
            number = self._containers[where]
            for name, offset, size in zip(rows.names, rows.offsets, rows.sizes, strict=True):
                self._writer.add(name, offset, size, number)
            self.hashes.extend(map(hash, rows.names))
            self._count.add(len(rows.names))
        self._note(rows.folders, rows.refused, str(rows.path))

    def _add_spools(self, members: Catalogue) -> None:
        numbers = [self._writer.container(Path(each["path"])) for each in members.containers]
        for place in members.places():
            where = place.offset, place.size, numbers[place.container]
            self._writer.add(place.name, *where)
            self.hashes.append(hash(place.name))
        self._note(members.folders, members.refused, str(members.path))

    def _note(self, folders: Iterable[str], refused: Iterable[Note], shown: str) -> None:
        self._writer.folders.update(folders)
        self._writer.refuse(refused)
        check_noted(self._writer.num_noted, shown)


def _num_files(found: list[Found]) -> int:
    return sum(len(each.names) for each in found if isinstance(each, Rows))


def _walk(task: _Task) -> tuple[int, list[Found]]:
    number, region = task
    return number, list_tar(region) if region else []


def without_doubles(listed: Catalogue, hashes: "array[int]", path: Path) -> Catalogue:
    """Turn what was listed into the catalogue at `path`, with the first file of each name.

    The others are refused by a note: names decide the order, so they have to be unique.
    """
    path.with_name(f"{path.name}.json").unlink(missing_ok=True)
    if doubled := _doubled(listed, hashes):
        check_noted(len(doubled) + len(listed.refused), str(path))
        _copy(listed, path, doubled)
    for source in files_of(listed.path):
        if doubled:
            source.unlink()
        else:
            os.replace(source, path.with_name(f"{path.name}{source.suffix}"))
    return Catalogue(path)


def _copy(listed: Catalogue, path: Path, doubled: set[int]) -> None:
    with CatalogueWriter(path) as writer:
        writer.containers, writer.folders = listed.containers, set(listed.folders)
        writer.refuse(listed.refused)
        for row, place in enumerate(listed.places()):
            if row in doubled:
                reason = "another file of this name comes before it"
                writer.refuse([Note(printable(place.name), "doubled name", reason)])
            else:
                writer.add(place.name, place.offset, place.size, place.container)
        writer.finish(listed.fingerprint)


def _doubled(listed: Catalogue, hashes: "array[int]") -> set[int]:
    """Return the rows whose name came before; 8 bytes a row and a sort, for names take 100."""
    values = np.frombuffer(hashes, np.int64)
    rising = np.sort(values)
    again = rising[1:][rising[1:] == rising[:-1]]
    if not len(again):
        return set()
    seen: set[str] = set()
    doubled: set[int] = set()
    for row in np.flatnonzero(np.isin(values, again)).tolist():
        name = listed.name(row)
        if name in seen:
            doubled.add(row)
        seen.add(name)
    return doubled
