"""MATLAB's .mat files (level 5) as far as label files need them, under caps.

Stanford Cars and Oxford Flowers keep their labels in such files. This reader takes nothing on
trust: what a compressed part may grow to, how deep parts nest and how many there are is bounded by
the bytes that are really there. Format: MathWorks, "MAT-File Format", version 5.
"""

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np

from pipeline.spec import Misuse

MAX_INFLATED_BYTES = 32 << 20
"""The largest in use, cars_annos.mat, has 8 MB."""
_MAX_DEPTH = 8
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_FIRST_NUMERIC, _LAST_NUMERIC = 6, 15
_COMPLEX = 0x0800
_NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_TEXTS = {1: "latin-1", 2: "latin-1", 16: "utf-8"}

Value = np.ndarray | str | list["Value"] | dict[str, list["Value"]] | None
"""Numbers (flat, columns first), a line of text, a cell array, the columns of a struct array, or
None for what no label file has (sparse and complex numbers, objects, functions)."""


class _Damaged(ValueError):
    """The file breaks the rules of its format."""


class _Part(NamedTuple):
    """One data element: its type, and where its data and the next element are."""

    kind: int
    start: int
    stop: int
    after: int


class MatFile:
    """The variables of a file.

    Args:
        data: the whole file.
        what: its name, for errors.

    Raises:
        Misuse: it is no such file, is damaged, or grows beyond all label files.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._what = what
        try:
            self.variables = _variables(data)
        except (_Damaged, zlib.error, UnicodeDecodeError, struct.error) as error:
            raise Misuse(f"{what}: not a usable .mat file: {error}; get it again") from None

    def __contains__(self, name: str) -> bool:
        return name in self.variables

    def integers(self, name: str) -> list[int]:
        """Return a variable that is an array of whole numbers."""
        return self._whole(self._get(name), name)

    def texts(self, name: str) -> list[str]:
        """Return a variable that is a cell array of strings."""
        value = self._get(name)
        return self._strings(value if isinstance(value, list) else [], name)

    def integer_column(self, name: str, field: str) -> list[int]:
        """Return a field of a struct array: one whole number each."""
        return [self._one(value, f"{name}.{field}") for value in self._column(name, field)]

    def text_column(self, name: str, field: str) -> list[str]:
        """Return a field of a struct array: one string each."""
        return self._strings(self._column(name, field), f"{name}.{field}")

    def _get(self, name: str) -> Value:
        if name not in self.variables:
            has = ", ".join(sorted(self.variables)[:8]) or "nothing"
            raise Misuse(f"{self._what}: it has no '{name}', only {has}; is it another file?")
        return self.variables[name]

    def _column(self, name: str, field: str) -> list[Value]:
        value = self._get(name)
        if not isinstance(value, dict) or field not in value:
            has = ", ".join(value) if isinstance(value, dict) else "no fields"
            raise Misuse(f"{self._what}: '{name}' has no field '{field}', but {has}")
        return value[field]

    def _one(self, value: Value, name: str) -> int:
        numbers = self._whole(value, name)
        if len(numbers) != 1:
            raise Misuse(f"{self._what}: {name} has {len(numbers)} numbers where it needs one")
        return numbers[0]

    def _whole(self, value: Value, name: str) -> list[int]:
        if not isinstance(value, np.ndarray):
            raise Misuse(f"{self._what}: {name} is no array of numbers")
        numbers: list[float] = value.tolist()
        for number in numbers:
            if number != number or math.isinf(number) or int(number) != number:
                raise Misuse(f"{self._what}: {name} has {number}, expected a whole number")
        return [int(number) for number in numbers]

    def _strings(self, values: list[Value], name: str) -> list[str]:
        strings = [value for value in values if isinstance(value, str)]
        if not strings or len(strings) != len(values):
            raise Misuse(f"{self._what}: {name} is no list of strings")
        return strings


def _variables(data: bytes) -> dict[str, Value]:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or len(data) < _HEADER_BYTES:
        raise _Damaged("it does not start as one of level 5")
    (version,) = struct.unpack_from(f"{order}H", data, 124)
    if version >> 8 != 1:
        raise _Damaged("it is of version 7.3 (HDF5); save it with -v7")
    if len(data) > MAX_INFLATED_BYTES:
        raise _Damaged(f"it is larger than {MAX_INFLATED_BYTES >> 20} MB")
    variables: dict[str, Value] = {}
    at, room = _HEADER_BYTES, MAX_INFLATED_BYTES
    while at < len(data):
        reader = _Parts(data, order)
        part = reader.part(at, len(data))
        at = part.after
        if part.kind == _COMPRESSED:
            inflated = _inflate(data[part.start : part.stop], room)
            room -= len(inflated)
            reader = _Parts(inflated, order)
            part = reader.part(0, len(inflated))
        if part.kind == _MATRIX:
            name, value = reader.matrix(part, 0)
            variables[name] = value
    return variables


def _inflate(data: bytes, most_bytes: int) -> bytes:
    stream = zlib.decompressobj()
    inflated = stream.decompress(data, most_bytes + 1)
    if len(inflated) > most_bytes:
        raise _Damaged(f"it grows beyond {MAX_INFLATED_BYTES >> 20} MB")
    if not stream.eof:
        raise _Damaged("a compressed part ends early")
    return inflated


class _Parts:
    """Reads the nested elements of one stretch of bytes."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data, self._order = data, order
        self._tag = struct.Struct(f"{order}II")

    def part(self, at: int, end: int) -> _Part:
        """Return the element at `at`, which lies before `end`."""
        if at + 8 > end:
            raise _Damaged(f"a part is missing at byte {at}")
        kind, size = self._tag.unpack_from(self._data, at)
        if kind >> 16:  # four bytes or fewer lie in the tag itself
            kind, size, start, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if size > 4:
                raise _Damaged(f"{size} bytes in the tag at byte {at}")
        else:
            start = at + 8
            after = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > end:
            raise _Damaged(f"the part at byte {at} claims {size:,} bytes, {end - start:,} are left")
        return _Part(kind, start, start + size, min(after, end))

    def matrix(self, part: _Part, depth: int) -> tuple[str, Value]:
        """Return name and value of an array of any class."""
        if depth > _MAX_DEPTH:
            raise _Damaged(f"arrays nest more than {_MAX_DEPTH} deep")
        if part.kind != _MATRIX:
            raise _Damaged(f"type {part.kind} where an array is expected")
        if part.start == part.stop:
            return "", np.zeros(0)
        about = self.part(part.start, part.stop)
        flags = self._numbers(about)
        cls = int(flags[0]) & 0xFF if len(flags) else 0
        if cls > _LAST_NUMERIC or (cls >= _FIRST_NUMERIC and int(flags[0]) & _COMPLEX):
            return "", None
        shape = self.part(about.after, part.stop)
        dims = [int(n) for n in self._numbers(shape)]
        if len(dims) < 2 or min(dims) < 0:
            raise _Damaged(f"an array has the shape {dims}")
        name = self.part(shape.after, part.stop)
        text = self._data[name.start : name.stop].decode("latin-1")
        return text, self._value(cls, dims, name.after, part.stop, depth)

    def _value(self, cls: int, dims: list[int], at: int, end: int, depth: int) -> Value:
        count = math.prod(dims)
        if cls == _CELL:
            return self._cells(count, at, end, depth)
        if cls == _STRUCT:
            return self._columns(count, at, end, depth)
        if cls == _CHAR:
            return self._text(self.part(at, end)) if count and dims[0] == 1 else ""
        if cls < _FIRST_NUMERIC:
            return None
        numbers = self._numbers(self.part(at, end))
        if len(numbers) != count:
            raise _Damaged(f"an array of shape {dims} has {len(numbers)} numbers")
        return numbers

    def _cells(self, count: int, at: int, end: int, depth: int) -> list[Value]:
        if count * 8 > end - at:  # each takes a tag at least
            raise _Damaged(f"{count:,} arrays in {end - at:,} bytes")
        values: list[Value] = []
        for _ in range(count):
            part = self.part(at, end)
            values.append(self.matrix(part, depth + 1)[1])
            at = part.after
        return values

    def _columns(self, count: int, at: int, end: int, depth: int) -> dict[str, list[Value]]:
        width_part = self.part(at, end)
        names_part = self.part(width_part.after, end)
        widths = self._numbers(width_part)
        width = int(widths[0]) if len(widths) else 0
        raw = self._data[names_part.start : names_part.stop]
        if raw and width < 1:
            raise _Damaged(f"names of fields have the length {width}")
        starts = range(0, len(raw), width) if raw else ()
        names = [raw[n : n + width].split(b"\0")[0].decode("latin-1") for n in starts]
        values = self._cells(count * len(names), names_part.after, end, depth)
        return {name: values[n :: len(names)] for n, name in enumerate(names)}

    def _numbers(self, part: _Part) -> np.ndarray:
        code = _NUMBERS.get(part.kind)
        if code is None:
            raise _Damaged(f"type {part.kind} where numbers are expected")
        dtype = np.dtype(self._order + code)
        if (part.stop - part.start) % dtype.itemsize:
            raise _Damaged(f"{part.stop - part.start} bytes of numbers at byte {part.start}")
        count = (part.stop - part.start) // dtype.itemsize
        if not count:
            return np.zeros(0, dtype)
        return np.frombuffer(self._data, dtype, count, part.start)

    def _text(self, part: _Part) -> str:
        wide = "utf-16-le" if self._order == "<" else "utf-16-be"
        return self._data[part.start : part.stop].decode(_TEXTS.get(part.kind, wide))
