"""The kinds of damage that loaders meet: to shards after their index was made, and to images before
their shard was written. Beside them odd images that are whole."""

import ctypes
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIRST, LAST = 20, 44
"""Samples of the shard that is damaged: FIRST <= id < LAST."""


# Damage to a shard, after its index was made. Each returns the samples that are hit.


def everything(index: Any) -> set[int]:
    return set(range(FIRST, LAST))


def hit(index: Any, start: int, stop: int) -> set[int]:
    """Return the samples of the shard with a byte in start <= n < stop."""
    found: set[int] = set()
    for sample_id in everything(index):
        entry = index.entry(sample_id)
        begin, end = int(entry["offset"]), int(entry["offset"]) + int(entry["size"])
        found |= {sample_id} if begin < stop and end > start else set()
    return found


def cut_in_half(tar: Path, index: Any) -> set[int]:
    size = tar.stat().st_size
    with tar.open("r+b") as file:
        file.truncate(size // 2)
    return hit(index, size // 2, size)


def deleted(tar: Path, index: Any) -> set[int]:
    tar.unlink()
    return everything(index)


def error_page(tar: Path, index: Any) -> set[int]:
    tar.write_text("<html><body>503 Service Unavailable</body></html>\n")
    return everything(index)


def long_error_page(tar: Path, index: Any) -> set[int]:
    tar.write_text("<html>" + " " * tar.stat().st_size + "</html>")
    return everything(index)


def a_folder(tar: Path, index: Any) -> set[int]:
    tar.unlink()
    tar.mkdir()
    return everything(index)


def chmod_000(tar: Path, index: Any) -> set[int]:
    tar.chmod(0)
    return everything(index)


def flipped_bits(tar: Path, index: Any) -> set[int]:
    raw, status = bytearray(tar.read_bytes()), tar.stat()
    for sample_id in (21, 30, 43):
        entry = index.entry(sample_id)
        raw[int(entry["offset"]) + int(entry["size"]) // 2] ^= 1 << sample_id % 8
    tar.write_bytes(raw)
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk loses them
    return {21, 30, 43}


def lost_block(tar: Path, index: Any) -> set[int]:
    with tar.open("r+b") as file:
        file.seek(8192)
        file.write(bytes(4096))
    return hit(index, 8192, 8192 + 4096)


def another_tar(tar: Path, index: Any) -> set[int]:
    """The index is older than its tar: the same size, other images at the same places."""
    raw = np.frombuffer(tar.read_bytes(), np.uint8)
    tar.write_bytes(np.roll(raw, 1024).tobytes())
    return everything(index)


def zeros(tar: Path, index: Any) -> set[int]:
    tar.write_bytes(bytes(tar.stat().st_size))
    return everything(index)


TO_SHARDS = (
    cut_in_half, deleted, error_page, long_error_page, a_folder, chmod_000, flipped_bits,
    lost_block, another_tar,
)  # fmt: skip


# Images that were broken when the shard was written, so that their checksums are right.


def jpeg_of(size: tuple[int, int], **options: Any) -> bytes:
    return encoded(picture(size), "JPEG", **options)


def picture(size: tuple[int, int]) -> Image.Image:
    small = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg_bomb() -> bytes:
    """A JPEG of 800 bytes that says it has 20,000 x 20,000 px."""
    data = bytearray(jpeg_of((40, 32)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    return bytes(data)


def png_bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


BROKEN_IMAGES = {
    "half a JPEG": jpeg_of((40, 32))[:-400],
    "a JPEG without its last byte": jpeg_of((40, 32))[:-1],
    "only a JPEG's header": jpeg_of((40, 32))[:200],
    "half a progressive JPEG": jpeg_of((80, 64), progressive=True)[:-700],
    "half a PNG": encoded(picture((40, 32)), "PNG")[:-900],
    "no bytes": b"",
    "one byte": b"\xff",
    "zeros": bytes(3000),
    "an error page": b"<html><body>404 Not Found</body></html>",
    "a JPEG bomb": jpeg_bomb(),
    "a PNG bomb": png_bomb(),
    "a format that is not read": encoded(picture((40, 32)), "BMP"),
}
ODD_IMAGES = {
    "a PNG named .jpg": encoded(picture((40, 32)), "PNG"),
    "CMYK": encoded(picture((40, 32)).convert("CMYK"), "JPEG"),
    "grey": encoded(picture((40, 32)).convert("L"), "JPEG"),
    "1 x 1": jpeg_of((1, 1)),
    "1 px high": jpeg_of((300, 1)),
    "progressive": jpeg_of((40, 32), progressive=True),
    "palette PNG": encoded(picture((40, 32)).convert("P"), "PNG"),
    "transparent PNG": encoded(picture((40, 32)).convert("RGBA"), "PNG"),
    "WebP": encoded(picture((40, 32)), "WEBP", lossless=True),
    "turned by EXIF": jpeg_of(
        (40, 32), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
}


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """Let file modes count for root too (Linux: give up CAP_DAC_* for a while)."""
    libc = ctypes.CDLL(None)
    head, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, rights) == 0
    kept = rights[0]
    rights[0] = kept & ~0b110
    assert libc.capset(head, rights) == 0
    try:
        yield
    finally:
        rights[0] = kept
        assert libc.capset(head, rights) == 0
