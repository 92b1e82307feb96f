"""The header of a JPEG, read without a decoder."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep.jpeg import BadMarkers, Frame, ends_whole, read_frame, read_orientation


def _jpeg(mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (40, 24)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_size_components_and_mode_are_those_that_pillow_reads(mode: str, progressive: bool) -> None:
    data = _jpeg(mode, progressive=progressive)
    components = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    assert read_frame(data) == Frame(40, 24, components, progressive, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_exifs(orientation: int) -> None:
    assert read_frame(_jpeg(exif=_exif(orientation))).orientation == orientation


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_are_read(order: str) -> None:
    exif = _exif(3)
    exif.endian = order
    assert read_orientation(exif.tobytes()[6:]) == 3


def test_damaged_exif_says_nothing_and_never_raises() -> None:
    whole = _exif(6).tobytes()[6:]
    rng = np.random.default_rng(0)
    for _ in range(500):
        bad = bytearray(whole[: int(rng.integers(len(whole) + 1))])
        if bad:
            bad[int(rng.integers(len(bad)))] = int(rng.integers(256))
        assert 1 <= read_orientation(bytes(bad)) <= 8
    assert read_orientation(b"MM\0*\0\0\0\x08\xff\xff") == 1


def test_every_cut_of_a_header_is_named() -> None:
    data = _jpeg(exif=_exif(6))
    scan = data.index(b"\xff\xda")
    for end in range(2, scan):
        with pytest.raises(BadMarkers, match="cut|broken|no marker"):
            read_frame(data[:end])
    with pytest.raises(BadMarkers, match="no frame header"):
        read_frame(b"\xff\xd8" + data[scan:])
    with pytest.raises(BadMarkers, match="ends before its first scan"):
        read_frame(b"\xff\xd8\xff\xd9")


def test_fill_bytes_before_a_marker_are_skipped() -> None:
    data = _jpeg()
    at = data.index(b"\xff\xc0")
    assert read_frame(data[:at] + b"\xff\xff" + data[at:]) == read_frame(data)


def test_zeros_may_follow_the_end_and_nothing_else() -> None:
    data = _jpeg()
    assert ends_whole(data) and ends_whole(data + b"\0" * 20)
    assert not ends_whole(data + b"x") and not ends_whole(data[:-1])
