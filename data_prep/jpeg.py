"""The markers of a JPEG, walked without decoding a pixel: size, components, orientation.

Source: ITU-T T.81, annex B; the orientation is tag 0x0112 of EXIF's first directory.
"""

import struct
from typing import NamedTuple

_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_ORIENTATION = 0x0112
_MAX_TAGS = 512


class BadMarkers(ValueError):
    """The bytes before the first scan are no JPEG header."""


class Frame(NamedTuple):
    """What the header says; `orientation` is EXIF's, 1 where there is none or a damaged one."""

    width: int
    height: int
    num_components: int
    progressive: bool
    orientation: int


def read_frame(data: bytes) -> Frame:
    """Read the header of a JPEG up to its first scan.

    Raises:
        BadMarkers: a marker is missing or cut, or there is no frame before the first scan.
    """
    position, orientation, frame = 2, 1, None
    while True:
        marker, position = _next_marker(data, position)
        if marker in _ALONE:
            continue
        if marker == _EOI:
            raise BadMarkers("the image ends before its first scan")
        if position + 2 > len(data):
            raise BadMarkers(f"cut inside the header, after {len(data)} bytes")
        length = int.from_bytes(data[position : position + 2], "big")
        segment = data[position + 2 : position + length]
        if length < 2 or len(segment) != length - 2:
            raise BadMarkers(f"segment 0x{marker:02x} at byte {position} is cut or broken")
        if marker == _SOS:
            break
        if marker in _FRAMES:
            frame = marker, segment
        elif marker == _APP1 and segment.startswith(b"Exif\0\0"):
            orientation = read_orientation(segment[6:])
        position += length
    if frame is None or len(frame[1]) < 6:
        raise BadMarkers("there is no frame header before the first scan")
    _, height, width, num_components = struct.unpack(">BHHB", frame[1][:6])
    progressive = frame[0] in (0xC2, 0xC6, 0xCA, 0xCE)
    return Frame(width, height, num_components, progressive, orientation)


def ends_whole(data: bytes) -> bool:
    """Tell whether the last bytes are an end of image, with nothing but zeros behind."""
    tail = data[-64:].rstrip(b"\0")
    return tail.endswith(bytes((0xFF, _EOI)))


def read_orientation(tiff: bytes) -> int:
    """Return the orientation, 1 to 8, of an EXIF block; 1 where it has none or is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (num_tags,) = struct.unpack_from(order + "H", tiff, start)
    for number in range(min(num_tags, _MAX_TAGS)):
        entry = start + 2 + 12 * number
        if entry + 12 > len(tiff):
            return 1
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == _ORIENTATION:
            return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    return 1


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    """Return the marker at `position` and where its segment starts; fill bytes may precede it."""
    if data[position : position + 1] != b"\xff":
        raise BadMarkers(f"no marker at byte {position}")
    while data[position : position + 1] == b"\xff":
        position += 1
    if position >= len(data):
        raise BadMarkers(f"cut inside the header, after {len(data)} bytes")
    return data[position], position + 1
