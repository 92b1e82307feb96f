"""Tables on disk: columns of numbers and the names of their rows, memory-mapped when read.

ImageNet-21k has 14 million files. As Python objects their list takes 10 GB; as columns in files it
takes none of a process's own memory, and every worker and array element sees the same pages.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pipeline.run.files import read_json, sync_folder, write_json
from pipeline.spec import Misuse

_AHEAD_ROWS = 1 << 16


class TableWriter:
    """Writes a table row by row into `path` + .rows, .names and .json; the last one makes it whole.

    Used as a context manager; left by an exception it leaves no whole table.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        assert dtype.names is not None and "name_end" in dtype.names
        self._path, self._dtype = path, dtype
        self._waiting: list[tuple[int, ...]] = []
        self._length = 0
        self._name_end = 0
        self.about: dict[str, object] = {}
        """What else is to be kept with the table, as JSON."""

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _file(self._path, "json").unlink(missing_ok=True)
        self._rows = _file(self._path, "rows").open("wb")
        self._names = _file(self._path, "names").open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        for file in (self._rows, self._names):
            with file:
                file.flush()
                os.fsync(file.fileno())
        if kind is None:
            sync_folder(self._path.parent)
            write_json(_file(self._path, "json"), {"rows": self._length, "about": self.about})

    def __len__(self) -> int:
        return self._length

    def add(self, name: str, *values: int) -> None:
        """Add a row: its name, then the columns in the order of the dtype after `name_end`."""
        encoded = name.encode("utf-8", "surrogateescape")
        self._names.write(encoded)
        self._name_end += len(encoded)
        self._waiting.append((self._name_end, *values))
        self._length += 1
        if len(self._waiting) >= _AHEAD_ROWS:
            self._flush()

    def remap(self, column: str, mapping: np.ndarray) -> None:
        """Replace each value v of a column by mapping[v], in the file."""
        self._flush()
        self._rows.flush()
        rows = np.memmap(self._rows.name, self._dtype, mode="r+")
        for start in range(0, len(rows), _AHEAD_ROWS):
            some = rows[start : start + _AHEAD_ROWS]
            some[column] = mapping[some[column]]
        rows.flush()

    def _flush(self) -> None:
        self._rows.write(np.array(self._waiting, self._dtype).tobytes())
        self._waiting.clear()


class Table:
    """A table that `TableWriter` wrote: `rows` is a memory-mapped (N,) structured array."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        saved = read_json(_file(path, "json"))
        if not isinstance(saved, dict):
            raise Misuse(f"{path}: the table is missing or unfinished; run the same command again")
        self.path = path
        self.about: dict[str, object] = saved["about"]
        self.rows = _map(_file(path, "rows"), dtype)
        self._names = _map(_file(path, "names"), np.dtype("u1"))
        if len(self.rows) != saved["rows"]:
            raise Misuse(f"{path}: the table is damaged; remove its folder and build again")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """Return the name of a row."""
        start = int(self.rows["name_end"][row - 1]) if row else 0
        raw = self._names[start : int(self.rows["name_end"][row])].tobytes()
        return raw.decode("utf-8", "surrogateescape")


def is_whole(path: Path) -> bool:
    """Tell whether a finished table lies at `path`."""
    return _file(path, "json").is_file()


def _file(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    # A plain view: indexing a memmap makes a new memmap each time, which takes most of 8 us a row.
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def as_json(value: object) -> str:
    """Return one line of JSON, the same for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
