"""One image: is it whole, and what of it is stored?

A good JPEG is stored byte for byte. PNG, GIF, BMP, WebP, gzip-ed, CMYK and 16-bit images become RGB
JPEGs and are recorded as repaired. Everything else is rejected with a reason. What a file is, its
first bytes say, never its name. All entropy-coded data of a JPEG are decoded, strictly: what
libjpeg only warns about (a scan that ends early, filled up with grey) is found here.
"""

import io
import re
import warnings
import zlib
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps
from pydantic import Field

from data_prep.jpeg import BadMarkers, Frame, ends_whole, read_frame
from pipeline.spec import Spec

MAX_SIDE_PX = 65_535
"""The largest side of a JPEG, and what the index can hold."""
MAX_INFLATED_BYTES = 256 << 20
MAX_SCANS = 500
"""Of a progressive JPEG; encoders write about ten. A scan of 100 bytes can cost a pass over all
pixels: 500 of them take 4 s on 81 megapixels, and a large file holds millions."""
GOOD, REPAIRED, REJECTED = 1, 2, 3
PLANES_PX = 32


class CleanRules(Spec):
    """What is let in, and what becomes of it."""

    decode: Literal["full", "header"] = "full"
    """header: only the markers of JPEGs are looked at, for archives that were checked before."""
    orientation: Literal["keep", "apply"] = "keep"
    """keep: pixels as stored, EXIF orientation noted and ignored, as the published pipelines do;
    apply: turned upright and encoded again."""
    min_side: int = Field(default=1, ge=1)
    """Images with a shorter side are rejected, px."""
    max_pixels: int = Field(default=89_478_485, ge=1)
    """Pillow's own limit against decompression bombs."""
    quality: int = Field(default=95, ge=1, le=100)
    """Of what has to be encoded again; its chroma is not subsampled."""


class Verdict(NamedTuple):
    """`stored` is what goes into the shard, empty for a reject; notes are (kind, whole reason)."""

    state: int
    notes: tuple[tuple[str, str], ...]
    width: int
    height: int
    stored: bytes
    suffix: str = "jpg"


class _Rejected(Exception):
    """Ends the judgement of one image."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.verdict = Verdict(REJECTED, ((kind, reason),), 0, 0, b"")


def check(data: bytes, rules: CleanRules) -> Verdict:
    """Judge the bytes of one file; never raises on their account."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        kind = sniff(data)
        if kind == "GZIP":
            return _without_gzip(data, rules)
        return _check_jpeg(data, rules) if kind == "JPEG" else _check_other(data, kind, rules)
    except _Rejected as error:
        return error.verdict


def check_pixels(data: bytes, kind: str) -> Verdict:
    """Turn raw pixels into a PNG, which changes none; `planes32` are CIFAR's 32x32 planes."""
    assert kind == "planes32"
    if len(data) != 3 * PLANES_PX * PLANES_PX:
        reason = f"{len(data)} bytes, not {3 * PLANES_PX * PLANES_PX}"
        return _Rejected("truncated", reason).verdict
    planes = np.frombuffer(data, np.uint8).reshape(3, PLANES_PX, PLANES_PX)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(buffer, "PNG")
    return Verdict(GOOD, (), PLANES_PX, PLANES_PX, buffer.getvalue(), "png")


def sniff(data: bytes) -> str:
    """Return the format of a file by its first bytes: JPEG, PNG, GIF, BMP, WEBP or GZIP."""
    if not data:
        raise _Rejected("empty file", "the file has zero bytes")
    for start, kind in _STARTS:
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    what = "HTML or XML text" if data.lstrip()[:1] == b"<" else f"starts with {data[:4].hex(' ')}"
    raise _Rejected("not an image", f"no JPEG, PNG, GIF, BMP or WebP: {what}")


_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"\x1f\x8b", "GZIP"),
)


def _without_gzip(data: bytes, rules: CleanRules) -> Verdict:
    """Judge what is inside a gzip (n02487347_1956 of ImageNet); a gzip in a gzip is none."""
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        inside = unzip.decompress(data, MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise _Rejected("cannot be decoded", f"a damaged gzip: {error}") from None
    if not unzip.eof:
        large = len(inside) == MAX_INFLATED_BYTES
        kind = "too large" if large else "truncated"
        raise _Rejected(kind, f"a gzip of over {len(inside)} bytes" if large else "a cut gzip")
    if inside[:2] == b"\x1f\x8b":
        raise _Rejected("not an image", "a gzip inside a gzip")
    found = check(inside, rules)
    if found.state == REJECTED:
        return found
    note = "gzip", "a gzip-ed image, stored without the gzip"
    return found._replace(state=REPAIRED, notes=(note, *found.notes))


def _check_size(width: int, height: int, rules: CleanRules) -> None:
    if max(width, height) > MAX_SIDE_PX or width * height > rules.max_pixels:
        limit = f"at most {MAX_SIDE_PX} px a side and {rules.max_pixels} pixels"
        raise _Rejected("too many pixels", f"{width}x{height}: {limit}")
    if min(width, height) < rules.min_side:
        raise _Rejected("too small", f"{width}x{height}: a side is under {rules.min_side} px")


def _check_jpeg(data: bytes, rules: CleanRules) -> Verdict:
    try:
        frame = read_frame(data)
    except BadMarkers as error:
        raise _Rejected("cannot be decoded", str(error)) from None
    _check_size(frame.width, frame.height, rules)
    if frame.progressive and data.count(b"\xff\xda") > MAX_SCANS:
        raise _Rejected("too many scans", f"a progressive JPEG of over {MAX_SCANS} scans")
    turned = frame.orientation != 1
    if frame.num_components not in (1, 3) or (turned and rules.orientation == "apply"):
        return _check_other(data, "JPEG", rules)
    notes: tuple[tuple[str, str], ...] = ()
    if turned:
        reason = f"EXIF orientation {frame.orientation}; ignored, pixels kept as they are stored"
        notes = (("exif orientation", reason),)
    if rules.decode == "full" or not ends_whole(data):
        notes += _decode(data, frame)
    return Verdict(GOOD, notes, frame.width, frame.height, data)


def _decode(data: bytes, frame: Frame) -> tuple[tuple[str, str], ...]:
    """Decode all coefficients; returns a note where the decoder only warns."""
    try:
        # Grey at the smallest scale: every code is read, few pixels are computed.
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, strict=True)
    except ValueError as error:
        if "remature end" in str(error):
            raise _Rejected("truncated", str(error)) from None
        size = _load(data, "JPEG").size
        if size != (frame.width, frame.height):
            raise _Rejected("cannot be decoded", f"decoders disagree: {error}") from None
        return (("decoder warning", str(error)),)
    return ()


def _load(data: bytes, kind: str) -> Image.Image:
    """Decode with Pillow; whatever a decoder raises on hostile bytes is a reject."""
    try:
        with warnings.catch_warnings():
            # A damaged EXIF block only warns (n04152593_17460), its pixels are whole.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[kind])
            image.load()
            return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _Rejected("too many pixels", str(error)) from None
    except Exception as error:
        cut = "truncated" if "truncated" in str(error) else "cannot be decoded"
        said = re.sub(r" <_io\.BytesIO object at 0x\w+>", "", str(error))  # differs from run to run
        raise _Rejected(cut, f"{type(error).__name__}: {said}") from None


def _check_other(data: bytes, kind: str, rules: CleanRules) -> Verdict:
    image = _load(data, kind)
    what = f"{kind} {image.mode}"
    if rules.orientation == "apply":
        image = _upright(image)
    _check_size(*image.size, rules)
    note = "exif orientation" if what in ("JPEG RGB", "JPEG L") else what
    reason = f"{what} re-encoded as RGB JPEG of quality {rules.quality}"
    return Verdict(REPAIRED, ((note, reason),), *image.size, _encode(image, rules.quality))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing; the pixels are whole
        return image


def _encode(image: Image.Image, quality: int) -> bytes:
    if image.mode.startswith("I"):  # Pillow clips 16-bit grey when it converts; keep the high byte
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    profile = image.info.get("icc_profile") or b""
    kept = profile if profile[16:20] == b"RGB " else None  # one of CMYK or grey fits no longer
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0, icc_profile=kept)
    return buffer.getvalue()
