"""Weights as bytes: safetensors, looked over before the parser or the model sees them.

A safetensors file starts with the length of a JSON header that names every tensor's type, shape
and place. A hostile header can claim terabytes, overlap, or nest without end; ours can only hold
what the model has, so anything else is refused first.
"""

import json
import math
import struct
from collections.abc import Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.spec import Failure

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
MAX_HEADER_BYTES = 8 * 2**20


class BrokenPackage(Failure):
    """A package whose files are as they were sealed, but make no model."""


def pack(state: Mapping[str, Tensor]) -> bytes:
    """Return the tensors as safetensors; equal tensors give equal bytes."""
    plain = {
        name: state[name].detach().to("cpu", copy=True).contiguous(
            memory_format=torch.contiguous_format
        )
        for name in sorted(state)
    }  # fmt: skip
    return save(plain)


def unpack(data: bytes, expected: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors in `data`, which must have `expected`'s names, shapes and types.

    Raises:
        BrokenPackage: the header is absurd, or describes something else; `source` is named.
    """
    header, size = _header(data, source)
    _check_tensors(header, expected, source)
    _check_places(header, size, source)
    try:
        return load(data)
    except Exception as error:
        raise BrokenPackage(f"{source}: is no safetensors file: {error}") from None


def _header(data: bytes, source: str) -> tuple[dict[str, dict[str, object]], int]:
    """Return the entries of all tensors, and how many bytes follow the header."""
    if len(data) < 8:
        raise BrokenPackage(f"{source}: {len(data)} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise BrokenPackage(
            f"{source}: claims a header of {length:,} bytes in a file of {len(data):,} "
            f"(at most {MAX_HEADER_BYTES:,}); it is damaged or hostile"
        )
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise BrokenPackage(f"{source}: its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise BrokenPackage(f"{source}: its header is no JSON object")
    header.pop("__metadata__", None)
    if not all(isinstance(entry, dict) for entry in header.values()):
        raise BrokenPackage(f"{source}: its header has entries that describe no tensor")
    return header, len(data) - 8 - length


def _check_tensors(
    header: dict[str, dict[str, object]], expected: Mapping[str, Tensor], source: str
) -> None:
    extra, missing = sorted(set(header) - set(expected)), sorted(set(expected) - set(header))
    if extra or missing:
        raise BrokenPackage(
            f"{source}: does not fit the model in config.json: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}), {len(extra)} are unknown ({', '.join(extra[:3])[:200]})"
        )
    for name, tensor in expected.items():
        entry, shape, kind = header[name], list(tensor.shape), _DTYPES[tensor.dtype]
        if entry.get("shape") != shape or entry.get("dtype") != kind:
            found = f"{str(entry.get('dtype'))[:20]} {str(entry.get('shape'))[:60]}"
            raise BrokenPackage(f"{source}: tensor {name} is {found}, expected {kind} {shape}")


def _check_places(header: dict[str, dict[str, object]], size: int, source: str) -> None:
    """Each tensor's bytes must follow the last one's, without gap, up to the end of the file."""
    places: list[tuple[int, int, int]] = []
    for name, entry in header.items():
        shape = entry["shape"]
        assert isinstance(shape, list)
        match entry.get("data_offsets"):
            case [int(start), int(end)]:
                places.append((start, end, math.prod(shape) * BYTES[str(entry["dtype"])]))
            case _:
                raise BrokenPackage(f"{source}: tensor {name} has no place in the file")
    at = 0
    for start, end, num_bytes in sorted(places):
        if start != at or end != start + num_bytes:
            break
        at = end
    if at != size:
        raise BrokenPackage(
            f"{source}: its tensors overlap, leave gaps or end outside of the file; it is damaged "
            f"or hostile"
        )
