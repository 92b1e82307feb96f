"""Images as they come: whole ones are kept, odd ones repaired, hostile ones rejected.

The odd files of ImageNet that the tests name are synthetic twins of the published lists
(tensorflow_datasets' imagenet builder, cytsai/ilsvrc-cmyk-image-list, Swin's skip list).
"""

import gzip
import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, features
from pydantic import ValidationError

from data_prep.clean import GOOD, REJECTED, REPAIRED, CleanRules, Verdict, check, check_pixels

Encode = Callable[..., bytes]
RULES = CleanRules()
HEADER = CleanRules(decode="header")


def _open(verdict: Verdict) -> Image.Image:
    return Image.open(io.BytesIO(verdict.stored))


def _smooth(mode: str = "RGB", width: int = 32, height: int = 24) -> Image.Image:
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 4).astype(np.uint8)
    return Image.fromarray(np.stack([ramp, ramp[::-1], ramp // 2], axis=2)).convert(mode)


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("rules", [RULES, HEADER], ids=["full", "header"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_good_jpeg_is_stored_byte_for_byte(
    mode: str, progressive: bool, rules: CleanRules
) -> None:
    data = _save(_smooth(mode), "JPEG", progressive=progressive)
    assert check(data, rules) == Verdict(GOOD, (), 32, 24, data, "jpg")


@pytest.mark.parametrize(
    ("twin", "kind", "mode"),
    [
        ("n02105855_2933, a PNG with alpha named .JPEG", "PNG", "RGBA"),
        ("n01739381_1309, CMYK", "JPEG", "CMYK"),
        ("palette", "PNG", "P"),
        ("grey with alpha", "PNG", "LA"),
        ("GIF", "GIF", "P"),
        ("BMP", "BMP", "RGB"),
        ("WebP", "WEBP", "RGB"),
    ],
)
def test_odd_files_become_rgb_jpegs_of_the_same_pixels(twin: str, kind: str, mode: str) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    data = _save(_smooth(mode), kind)
    verdict = check(data, RULES)
    ((noted, reason),) = verdict.notes
    assert (verdict.state, verdict.width, verdict.height) == (REPAIRED, 32, 24), twin
    assert noted.startswith(kind) and "re-encoded as RGB JPEG of quality 95" in reason
    again = _open(verdict)
    assert (again.format, again.mode, again.size) == ("JPEG", "RGB", (32, 24))
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(np.asarray(again).astype(int) - wanted).mean() < 6
    assert check(verdict.stored, RULES).state == GOOD
    assert check(data, HEADER) == verdict, "what has to be encoded is decoded under any rule"


def test_an_animated_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = _save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    pixel = np.asarray(_open(check(data, RULES)))[4, 4]
    assert pixel[0] > 200 and pixel[2] < 50


def test_a_gzip_ed_jpeg_is_stored_without_the_gzip(encode: Encode) -> None:
    data = encode()  # the twin of n02487347_1956
    verdict = check(gzip.compress(data), RULES)
    assert (verdict.state, verdict.stored) == (REPAIRED, data)
    assert verdict.notes[0][0] == "gzip"


def test_sixteen_bit_grey_keeps_its_contrast() -> None:
    values = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    stored = np.asarray(_open(check(_save(Image.fromarray(values), "PNG"), RULES)))[..., 0]
    assert np.abs(stored.astype(int) - (values >> 8).astype(int)).max() < 8


def _png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _claiming(jpeg: bytes, width: int, height: int) -> bytes:
    """The same JPEG with other sizes in its frame header."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def test_broken_and_hostile_files_are_rejected_with_a_reason(encode: Encode) -> None:
    jpeg = encode(width=64, height=64)
    cases = {
        b"": "empty file",
        b"hello, I am a text": "not an image",
        b"<html>404</html>": "not an image",
        b"II*\0 a TIFF": "not an image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n": "not an image",
        gzip.compress(gzip.compress(jpeg)): "not an image",
        gzip.compress(jpeg)[:-20]: "truncated",
        gzip.compress(jpeg)[:30] + b"\0" * 400: "cannot be decoded",
        gzip.compress(b"\0" * (257 << 20), 1): "too large",
        jpeg[: len(jpeg) // 2]: "truncated",
        jpeg[: len(jpeg) // 2] + b"\xff\xd9": "truncated",
        jpeg[:20]: "cannot be decoded",
        jpeg[:2] + jpeg[-2:]: "cannot be decoded",
        b"\xff\xd8\xff" + b"\0" * 100: "cannot be decoded",
        encode(kind="PNG")[:200]: "cannot be decoded",
        _png_bomb(20_000, 20_000): "too many pixels",
        _png_bomb(10_000, 9_500): "too many pixels",
        _png_bomb(70_000, 4): "too many pixels",
        _claiming(jpeg, 60_000, 60_000): "too many pixels",
        _claiming(jpeg, 64, 0): "too small",
    }
    for data, kind in cases.items():
        verdict = check(data, RULES)
        ((noted, reason),) = verdict.notes
        assert (verdict.state, verdict.stored) == (REJECTED, b""), data[:20]
        assert noted in (kind, "truncated"), (data[:20], verdict)
        assert reason


def test_a_progressive_jpeg_of_hundreds_of_scans_is_rejected_undecoded() -> None:
    jpeg = _save(_smooth(), "JPEG", progressive=True)
    start, end = jpeg.rindex(b"\xff\xda"), jpeg.rindex(b"\xff\xd9")
    bomb = jpeg[:end] + jpeg[start:end] * 500 + jpeg[end:]
    for rules in (RULES, HEADER):
        assert check(bomb, rules).notes[0][0] == "too many scans"
        assert check(jpeg, rules).state == GOOD


def test_limits_on_sizes_are_choices(encode: Encode) -> None:
    data = encode(width=40, height=12)
    assert check(data, CleanRules(min_side=13)).notes[0][0] == "too small"
    assert check(data, CleanRules(max_pixels=479)).notes[0][0] == "too many pixels"
    assert check(data, CleanRules(min_side=12, max_pixels=480)).state == GOOD
    with pytest.raises(ValidationError):
        CleanRules(min_side=0)


@pytest.mark.parametrize("rules", [RULES, HEADER], ids=["full", "header"])
def test_every_cut_of_a_jpeg_is_rejected(encode: Encode, rules: CleanRules) -> None:
    data = encode(width=48, height=48)
    for size in range(0, len(data) - 16, 97):
        assert check(data[:size], rules).state == REJECTED, size


def test_a_scan_that_ends_early_is_truncated_though_decoders_fill_it_with_grey() -> None:
    data = _save(_smooth(width=256, height=256), "JPEG", quality=95)
    cut = data[: len(data) * 2 // 3] + b"\xff\xd9"
    Image.open(io.BytesIO(cut)).load()  # Pillow takes it
    verdict = check(cut, RULES)
    assert (verdict.state, verdict.notes[0][0]) == (REJECTED, "truncated")


def test_bytes_that_the_decoder_skips_are_kept_and_noted() -> None:
    data = _save(_smooth(width=64, height=64), "JPEG")
    odd = data[:-2] + b"\x12" * 32 + data[-2:]
    verdict = check(odd, RULES)
    assert (verdict.state, verdict.stored) == (GOOD, odd)
    ((kind, reason),) = verdict.notes
    assert kind == "decoder warning" and "extraneous" in reason


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"]
)
@pytest.mark.parametrize("orientation", ["keep", "apply"])
def test_a_damaged_exif_block_is_no_reason_to_reject(exif: bytes, orientation: str) -> None:
    data = _save(Image.new("RGB", (8, 8)), "JPEG", exif=exif)  # the twin of n04152593_17460
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = check(data, CleanRules.model_validate({"orientation": orientation}))
    assert (found.state, found.notes, found.stored) == (GOOD, (), data)


def test_exif_orientation_is_kept_and_noted_or_applied() -> None:
    image = Image.new("RGB", (32, 16), "white")
    image.paste("black", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    data = _save(image, "JPEG", exif=exif)
    kept = check(data, RULES)
    assert (kept.state, kept.stored, kept.width) == (GOOD, data, 32)
    assert kept.notes[0][0] == "exif orientation" and "6" in kept.notes[0][1]
    upright = check(data, CleanRules(orientation="apply"))
    assert (upright.state, upright.width, upright.height) == (REPAIRED, 16, 32)
    pixels = np.asarray(_open(upright).convert("L"))
    assert pixels[:12].mean() < 30 and pixels[20:].mean() > 225
    assert check(upright.stored, RULES).notes == ()


def test_flipped_bits_never_raise_and_what_is_kept_can_be_read() -> None:
    data = _save(_smooth(width=64, height=64), "JPEG", quality=90)
    rng = np.random.default_rng(0)
    states = set()
    for _ in range(300):
        bad = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            bad[int(rng.integers(len(bad)))] ^= 1 << int(rng.integers(8))
        verdict = check(bytes(bad), RULES)
        states.add(verdict.state)
        if verdict.stored:
            assert _open(verdict).convert("RGB").size == (verdict.width, verdict.height)
    assert states == {GOOD, REJECTED}


def test_raw_planes_become_a_png_of_exactly_these_pixels() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    verdict = check_pixels(planes.tobytes(), "planes32")
    assert (verdict.state, verdict.suffix, verdict.width, verdict.height) == (GOOD, "png", 32, 32)
    assert np.array_equal(np.asarray(_open(verdict)), planes.transpose(1, 2, 0))
    assert check_pixels(b"\0" * 3071, "planes32").state == REJECTED


@pytest.mark.parametrize(("space", "is_kept"), [(b"RGB ", True), (b"CMYK", False)])
def test_an_image_encoded_anew_keeps_a_colour_profile_that_still_fits(
    space: bytes, is_kept: bool
) -> None:
    profile = bytes(16) + space + bytes(108)
    verdict = check(_save(_smooth("RGB"), "PNG", icc_profile=profile), RULES)
    assert verdict.state == REPAIRED
    assert Image.open(io.BytesIO(verdict.stored)).info.get("icc_profile") == (
        profile if is_kept else None
    )
