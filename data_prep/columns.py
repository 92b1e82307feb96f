"""Tables on disk: columns of numbers and the names of their rows, memory-mapped when read.

ImageNet-21k has 14 million files. As Python objects their list takes 10 GB; as columns in files it
takes none of a process's own memory, and every worker and array element sees the same pages.
What else may be long, as the files that were refused, are lists: lines of JSON, read one by one.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from pipeline.run.files import read_json, sync_folder, write_json
from pipeline.spec import Misuse

_AHEAD_ROWS = 1 << 16
_BUFFER_BYTES = 1 << 18


class TableWriter:
    """Writes a table row by row into `path` + .rows, .names, lists and .json, which comes last.

    The .json makes it whole: it says how large the others are. Used as a context manager; left by
    an exception it leaves no whole table.
    """

    def __init__(self, path: Path, dtype: np.dtype, lists: Sequence[str] = ()) -> None:
        assert dtype.names is not None and "name_end" in dtype.names
        self._path, self._dtype = path, dtype
        self._waiting: list[tuple[int, ...]] = []
        self._length = 0
        self._name_end = 0
        self.num_lines = dict.fromkeys(lists, 0)
        """Lines of each list so far."""
        self.about: dict[str, object] = {}
        """What else is to be kept, as JSON; every process reads it, so nothing for each row."""

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _file(self._path, "json").unlink(missing_ok=True)
        suffixes = ("rows", "names", *self.num_lines)
        self._files = {
            suffix: _file(self._path, suffix).open("wb", _BUFFER_BYTES) for suffix in suffixes
        }
        self._rows, self._names = self._files["rows"], self._files["names"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        num_bytes = {}
        for suffix, file in self._files.items():
            with file:
                file.flush()
                os.fsync(file.fileno())
                num_bytes[suffix] = file.tell()
        if kind is None:
            sync_folder(self._path.parent)
            values = {
                "rows": self._length,
                "lines": self.num_lines,
                "bytes": num_bytes,
                "about": self.about,
            }
            write_json(_file(self._path, "json"), values)

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

    def add_line(self, suffix: str, value: object) -> None:
        """Add a line to the list `suffix`; nothing of it stays in memory."""
        self._files[suffix].write(json.dumps(value).encode() + b"\n")
        self.num_lines[suffix] += 1

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
    """A table that `TableWriter` wrote: `rows` is a memory-mapped (N,) structured array.

    Raises:
        Misuse: it is missing, unfinished, or one of its files was cut or removed.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        saved = _saved(path)
        if saved is None:
            raise Misuse(f"{path}: the table is missing or unfinished; run the same command again")
        if damage := _damage(path, saved):
            raise Misuse(
                f"{damage}; run the same command again from stage list, which writes it anew, or "
                f"remove the folder {path.parent} first"
            )
        self.path = path
        self.about: dict[str, object] = saved["about"]
        self._num_lines: dict[str, int] = saved["lines"]
        self.rows = _map(_file(path, "rows"), dtype)
        self._names = _map(_file(path, "names"), np.dtype("u1"))

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """Return the name of a row."""
        start = int(self.rows["name_end"][row - 1]) if row else 0
        raw = self._names[start : int(self.rows["name_end"][row])].tobytes()
        return raw.decode("utf-8", "surrogateescape")

    def num_lines(self, suffix: str) -> int:
        """Return how many lines the list `suffix` has."""
        return self._num_lines[suffix]

    def lines(self, suffix: str) -> Iterator[Any]:
        """Yield the values of the list `suffix` in order; one of them is in memory at a time."""
        with _file(self.path, suffix).open("rb") as file:
            yield from map(json.loads, file)


def is_whole(path: Path) -> bool:
    """Tell whether a finished table lies at `path`, all its files as long as they were written."""
    saved = _saved(path)
    return saved is not None and not _damage(path, saved)


def is_finished(path: Path) -> bool:
    """Tell whether a table was finished at `path`, whatever happened to its files since."""
    return _file(path, "json").exists()


def files_of(path: Path) -> list[Path]:
    """Return the files of a finished table; the last one makes it whole."""
    saved = _saved(path)
    assert saved is not None, f"{path}: no finished table"
    return [_file(path, suffix) for suffix in (*saved["bytes"], "json")]


def _saved(path: Path) -> dict[str, Any] | None:
    """Return what is told of a finished table; None where there is none, or one of old."""
    saved = read_json(_file(path, "json"))
    told = isinstance(saved, dict) and {"rows", "lines", "bytes", "about"} <= saved.keys()
    return saved if told else None


def _damage(path: Path, saved: dict[str, Any]) -> str:
    """Say which file of a finished table is not as it was written; empty: none."""
    for suffix, expected in saved["bytes"].items():
        file = _file(path, suffix)
        try:
            found = file.stat().st_size
        except OSError as error:
            return f"{file}: cannot be read ({error.strerror})"
        if found != expected:
            return f"{file}: has {found} bytes, {expected} were written: damaged since"
    return ""


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
