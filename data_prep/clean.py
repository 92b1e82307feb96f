"""One image: is it whole, and what of it is stored?

A good JPEG is stored byte for byte. PNG, WebP, CMYK and 16-bit images become RGB JPEGs and are
recorded as repaired. Everything else is rejected with a reason. Every image is decoded in full:
nothing that cannot be decoded gets into a shard. Pillow's limit on pixels stays on.
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

MAX_IMAGE_BYTES = 128 << 20
MAX_SIDE_PX = 65_535
"""The largest side of a JPEG, and what the index can hold."""
QUALITY = 95
FORMATS = ("JPEG", "PNG", "WEBP")

GOOD, REPAIRED, REJECTED = 1, 2, 3


class Verdict(NamedTuple):
    """`stored` is what goes into the shard, empty for a reject; `kind` groups reasons."""

    state: int
    kind: str
    reason: str
    width: int
    height: int
    stored: bytes


def check(data: bytes) -> Verdict:
    """Judge the bytes of one file; never raises on their account."""
    if not data:
        return reject("empty file", "the file has zero bytes")
    if not _format(data):
        return reject("not an image", f"no JPEG, PNG or WebP: starts with {data[:4].hex(' ')}")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings():
            # A damaged EXIF block only warns (n04152593_17460), its pixels are whole.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _judge(image, data)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return reject("too many pixels", str(error))
    except Exception as error:  # whatever a decoder raises on hostile bytes is a reject
        kind = "truncated" if "truncated" in str(error) else "cannot be decoded"
        return reject(kind, f"{type(error).__name__}: {error}")


def reject(kind: str, reason: str) -> Verdict:
    """Return the verdict of an image that is left out."""
    return Verdict(REJECTED, kind, reason, 0, 0, b"")


def _format(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def _judge(image: Image.Image, data: bytes) -> Verdict:
    width, height = image.size
    if max(width, height) > MAX_SIDE_PX:
        return reject("too many pixels", f"{width}x{height}: a side is over {MAX_SIDE_PX} px")
    image.load()
    name = _format(data)
    if name == "JPEG" and image.mode in ("RGB", "L"):
        return Verdict(GOOD, "", "", width, height, data)
    kind = f"{name} {image.mode}"
    return Verdict(REPAIRED, kind, f"{kind} re-encoded as RGB JPEG", width, height, _encode(image))


def _encode(image: Image.Image) -> bytes:
    if image.mode.startswith("I"):  # Pillow clips 16-bit grey when it converts; keep the high byte
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()
