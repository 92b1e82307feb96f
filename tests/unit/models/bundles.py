"""Writes TensorFlow checkpoints for tests, from the format's description: right ones and wrong.

Nothing of the format comes from the reader: numbers, prefixes, blocks and checksums are made anew.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

import google_crc32c
import numpy as np

from pipeline.models.table import Row

MICRO = Row(
    stem=8,
    stages=(
        "fused e1 k3 s1 c8 x1",
        "fused e2 k3 s2 c8 x1",
        "mb e1 k3 s1 c8 x1 se0.25",
        "mb e2 k5 s2 c16 x1 se0.25",
        "mb e2 k3 s1 c16 x1 se0.25",
    ),
    head=16,
    eval_px=20,
    dropout=0.0,
    params={},
    gmacs={},
)
"""What `files/write_checkpoint.py` trained with TensorFlow."""
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
TYPES = {"float32": 1, "float64": 2, "int64": 9, "float16": 19, "int32": 3}
Wire = int | bytes | list[bytes]


def number(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(fields: Mapping[int, Wire]) -> bytes:
    """Encode a protobuf message; field 6 is the one of four fixed bytes."""
    out = b""
    for key, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            if key == 6 and isinstance(item, int):
                out += number(key << 3 | 5) + struct.pack("<I", item)
            elif isinstance(item, int):
                out += number(key << 3) + number(item)
            else:
                out += number(key << 3 | 2) + number(len(item)) + item
    return out


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def block(entries: list[tuple[bytes, bytes]], restart_every: int = 16) -> bytes:
    out, before, restarts = b"", b"", []
    for place, (key, value) in enumerate(entries):
        shared = 0
        if place % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(before), len(key)) and before[shared] == key[shared]:
                shared += 1
        out += number(shared) + number(len(key) - shared) + number(len(value))
        out += key[shared:] + value
        before = key
    restarts = restarts or [0]
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(entries: Mapping[bytes, bytes], per_block: int = 20, kind: int = 0) -> bytes:
    """Lay entries out in blocks of `per_block`; the order is the caller's."""
    items = list(entries.items())
    parts = [items[start : start + per_block] for start in range(0, len(items), per_block)]
    return framed([(part[-1][0], block(part)) for part in parts], kind)


def framed(blocks: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """Put blocks, each behind its last key, into a table with right checksums and addresses."""
    out = b""

    def add(content: bytes) -> bytes:
        nonlocal out
        handle = number(len(out)) + number(len(content))
        body = content + bytes([kind])
        out += body + struct.pack("<I", masked(body))
        return handle

    handles = [(last, add(content)) for last, content in blocks]
    footer = add(block([])) + add(block(handles))
    return out + footer.ljust(40, b"\0") + MAGIC


def entry(
    dtype: int,
    shape: tuple[int, ...],
    data: bytes,
    place: tuple[int, int] = (0, 0),
    changed: Mapping[int, Wire] | None = None,
) -> bytes:
    """Encode one tensor's entry; `place` is its shard and offset."""
    dims = [message({1: size}) for size in shape]
    fields: dict[int, Wire] = {1: dtype, 2: message({2: dims}), 3: place[0], 4: place[1]}
    fields |= {5: len(data), 6: masked(data)}
    return message(fields | dict(changed or {}))


def write(prefix: Path, arrays: Mapping[str, np.ndarray], num_shards: int = 1) -> Path:
    """Write a checkpoint; tensors go to the shards in turn."""
    shards = [b""] * num_shards
    entries = {b"": message({1: num_shards, 3: message({1: 1})})}
    for place, name in enumerate(sorted(arrays)):
        array = arrays[name]
        data, shard = array.tobytes(), place % num_shards
        entries[name.encode()] = entry(
            TYPES[array.dtype.name], array.shape, data, (shard, len(shards[shard]))
        )
        shards[shard] += data
    prefix.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{prefix}.index").write_bytes(table(entries))
    for place, content in enumerate(shards):
        Path(f"{prefix}.data-{place:05}-of-{num_shards:05}").write_bytes(content)
    return prefix
