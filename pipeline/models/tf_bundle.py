"""A TensorFlow checkpoint read without TensorFlow: which tensors there are, and their values.

`PREFIX.index` is a sorted table from a variable's name to its type, shape and place;
`PREFIX.data-00000-of-00001` and its kin hold the bytes. Each tensor has a crc32c, which is checked.
Only what can be weights is read: whole tensors of floats or 64-bit integers. Source:
`core/protobuf/tensor_bundle.proto` and `core/util/tensor_bundle` of TensorFlow.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.models.tf_table import MAX_BYTES, BrokenCheckpoint, crc_fits, read_table, varint
from pipeline.spec import Misuse

MAX_DIMS = 8
MAX_SHARDS = 1_000
_DTYPES = {1: "<f4", 2: "<f8", 9: "<i8", 19: "<f2"}
"""TensorFlow's numbers of the types that can be read."""
_LITTLE_ENDIAN = 0
_NEWEST = re.compile(r'^model_checkpoint_path: "([^"/]+)"$', re.MULTILINE)


class Entry(NamedTuple):
    """One tensor: its type in TensorFlow's numbers, its shape, and its place in the shards."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class Bundle(NamedTuple):
    """The tensors of a checkpoint by name, none of them read yet."""

    prefix: Path
    num_shards: int
    entries: Mapping[str, Entry]

    def read(self, name: str) -> np.ndarray:
        """Return the values of the tensor `name`, in an array of their own.

        Raises:
            BrokenCheckpoint: its bytes are missing, or are not those that were written.
            Misuse: the file of its bytes is missing, or it is of a type that is not read.
        """
        entry = self.entries[name]
        path = Path(f"{self.prefix}.data-{entry.shard:05}-of-{self.num_shards:05}")
        if entry.dtype not in _DTYPES:
            raise Misuse(
                f"{path}: tensor '{name}' is of TensorFlow's type {entry.dtype}; read are "
                "float32 (1), float64 (2), int64 (9) and float16 (19)"
            )
        dtype = np.dtype(_DTYPES[entry.dtype])
        if math.prod(entry.shape) * dtype.itemsize != entry.size:
            raise BrokenCheckpoint(
                f"{path}: tensor '{name}' of shape {entry.shape} is said to have {entry.size:,} "
                "bytes"
            )
        data = _part(path, entry.offset, entry.size, name)
        if not crc_fits(data, entry.crc):
            raise BrokenCheckpoint(
                f"{path}: checksum of tensor '{name}' is wrong; fetch the checkpoint again"
            )
        return np.frombuffer(data, dtype).reshape(entry.shape).copy()


def open_bundle(place: Path) -> Bundle:
    """Read the index of a checkpoint: of a prefix (`model`, also `model.index`) or of a folder.

    In a folder it is the only one, or the one that the file `checkpoint` there names.

    Raises:
        Misuse: there is none, or a folder holds several.
        BrokenCheckpoint: the index is damaged.
    """
    prefix = _prefix(place)
    path = Path(f"{prefix}.index")
    try:
        with open(path, "rb") as file:
            table = read_table(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise Misuse(
            f"{path}: cannot be read ({error.strerror}); name the prefix of a TensorFlow "
            "checkpoint: the part of its files' names before .index (an archive is unpacked first)"
        ) from None
    num_shards = _num_shards(table.pop("", b""), str(path))
    entries = {name: _entry(value, name, str(path)) for name, value in table.items()}
    wrong = [name for name, entry in entries.items() if entry.shard >= num_shards]
    if wrong:
        raise BrokenCheckpoint(f"{path}: tensor '{wrong[0]}' lies in a shard that is not there")
    return Bundle(prefix, num_shards, entries)


def _prefix(place: Path) -> Path:
    if not place.is_dir():
        return place.with_suffix("") if place.suffix == ".index" else place
    found = sorted(path.name.removesuffix(".index") for path in place.glob("*.index"))
    if len(found) > 1 and (place / "checkpoint").is_file():
        with open(place / "checkpoint", encoding="utf-8", errors="replace") as file:
            newest = _NEWEST.search(file.read(MAX_BYTES))
        found = [newest[1]] if newest and newest[1] in found else found
    if len(found) != 1:
        raise Misuse(
            f"{place}: holds {len(found)} TensorFlow checkpoints ({', '.join(found[:5])}); name "
            "the prefix of one: the part of its files' names before .index"
        )
    return place / found[0]


def _part(path: Path, offset: int, size: int, name: str) -> bytes:
    try:
        with open(path, "rb") as file:
            if offset + size > path.stat().st_size:
                raise BrokenCheckpoint(
                    f"{path}: ends before tensor '{name}' does; fetch the checkpoint again"
                )
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise Misuse(
            f"{path}: cannot be read ({error.strerror}); a checkpoint is its .index and all its "
            ".data files, side by side"
        ) from None


def _num_shards(header: bytes, source: str) -> int:
    """Read a BundleHeaderProto: num_shards = 1, endianness = 2."""
    fields = dict(_fields(header, source))
    num_shards = fields.get(1, 0)
    if not isinstance(num_shards, int) or not 1 <= num_shards <= MAX_SHARDS:
        raise BrokenCheckpoint(
            f"{source}: says that its tensors lie in {num_shards!r:.20} shards (of 1 to "
            f"{MAX_SHARDS:,})"
        )
    if fields.get(2, _LITTLE_ENDIAN) != _LITTLE_ENDIAN:
        raise Misuse(f"{source}: was written by a big-endian machine; save it again elsewhere")
    return num_shards


def _entry(value: bytes, name: str, source: str) -> Entry:
    """Read a BundleEntryProto: dtype 1, shape 2, shard 3, offset 4, size 5, crc32c 6, slices 7."""
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    shape: tuple[int, ...] = ()
    for number, field in _fields(value, source):
        if number == 7:
            raise Misuse(
                f"{source}: variable '{name}' is partitioned; save the checkpoint with whole ones"
            )
        if number == 2 and isinstance(field, bytes):
            shape = _shape(field, name, source)
        elif number in numbers and isinstance(field, int):
            numbers[number] = field
    return Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6])


def _shape(value: bytes, name: str, source: str) -> tuple[int, ...]:
    """Read a TensorShapeProto: dim = 2, each with its size = 1."""
    dims = [dict(_fields(dim, source)) for number, dim in _fields(value, source) if number == 2
            and isinstance(dim, bytes)]  # fmt: skip
    sizes = [dim.get(1, 0) for dim in dims]
    shape = tuple(size for size in sizes if isinstance(size, int) and size < 2**40)
    if len(shape) != len(sizes) or len(shape) > MAX_DIMS:
        raise BrokenCheckpoint(f"{source}: tensor '{name}' has no possible shape")
    return shape


def _fields(message: bytes, source: str) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a protobuf message, as it is on the wire."""
    at = 0
    while at < len(message):
        key, at = varint(message, at, source)
        kind = key & 7
        if kind == 0:
            value, at = varint(message, at, source)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = varint(message, at, source)
        if size is None or at + size > len(message):
            raise BrokenCheckpoint(f"{source}: a description in it is cut off")
        part = message[at : at + size]
        at += size
        yield key >> 3, part if kind == 2 else int.from_bytes(part, "little")
