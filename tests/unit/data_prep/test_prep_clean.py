"""Images as they come: whole ones are kept, odd ones repaired, hostile ones rejected."""

import gzip
import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, features

from data_prep.clean import GOOD, REJECTED, REPAIRED, check

Encode = Callable[..., bytes]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_good_jpeg_is_stored_byte_for_byte(encode: Encode, mode: str) -> None:
    data = encode(mode=mode)
    verdict = check(data)
    assert (verdict.state, verdict.stored) == (GOOD, data)
    assert (verdict.width, verdict.height) == (16, 12)


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGBA"), ("PNG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB")]
)
def test_other_formats_become_rgb_jpegs(encode: Encode, kind: str, mode: str) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    verdict = check(encode(kind=kind, mode=mode))
    assert verdict.state == REPAIRED
    assert verdict.reason == f"{kind} {mode} re-encoded as RGB JPEG"
    again = Image.open(io.BytesIO(verdict.stored))
    assert (again.format, again.mode, again.size) == ("JPEG", "RGB", (16, 12))
    assert check(verdict.stored).state == GOOD


def test_repaired_pixels_are_those_that_pillow_sees() -> None:
    grid = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    image = Image.merge("RGB", [Image.fromarray(grid)] * 3).convert("CMYK")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    wanted = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    found = np.asarray(Image.open(io.BytesIO(check(buffer.getvalue()).stored))).astype(int)
    assert np.abs(found - wanted).mean() < 2


def test_sixteen_bit_grey_keeps_its_contrast() -> None:
    values = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    stored = np.asarray(Image.open(io.BytesIO(check(buffer.getvalue()).stored)))[..., 0]
    assert np.abs(stored.astype(int) - (values >> 8).astype(int)).max() < 8


def _png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_broken_and_hostile_files_are_rejected_with_a_reason(encode: Encode) -> None:
    jpeg = encode(width=64, height=64)
    cases = {
        b"": "empty file",
        b"hello, I am a text": "not an image",
        b"<html>404</html>": "not an image",
        gzip.compress(jpeg): "not an image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n": "not an image",
        jpeg[: len(jpeg) // 2]: "truncated",
        jpeg[:20]: "cannot be decoded",
        b"\xff\xd8\xff" + b"\0" * 100: "cannot be decoded",
        encode(kind="PNG")[:200]: "cannot be decoded",
        _png_bomb(20_000, 20_000): "too many pixels",
        _png_bomb(10_000, 9_500): "too many pixels",
        _png_bomb(70_000, 4): "too many pixels",
    }
    for data, kind in cases.items():
        verdict = check(data)
        assert (verdict.state, verdict.stored) == (REJECTED, b""), data[:20]
        assert verdict.kind in (kind, "truncated"), (data[:20], verdict)
        assert verdict.reason


def test_every_cut_of_a_jpeg_is_rejected(encode: Encode) -> None:
    data = encode(width=48, height=48)
    for size in range(0, len(data) - 16, 97):
        assert check(data[:size]).state == REJECTED, size


def test_a_damaged_exif_block_is_no_reason_to_reject() -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (8, 8))
    image.save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(buffer.getvalue()).state == GOOD
