"""Images coded anew: the same pixels without loss, or a smaller picture."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import transcode as module
from data_prep.clean import GOOD, REJECTED, CleanRules, Verdict, check
from data_prep.transcode import ENCODER, TranscodeSpec, check_encoder, transcode
from pipeline.spec import Misuse

RULES = CleanRules()
needs_native = pytest.mark.skipif(
    module._NATIVE is None, reason="data_prep._native was not built: no libjpeg-turbo here"
)


def _jpeg(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    rng = np.random.default_rng(width * height)
    coarse = rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def _good(data: bytes) -> Verdict:
    verdict = check(data, RULES)
    assert verdict.state == GOOD
    return verdict


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def _restart_interval(data: bytes) -> int:
    at = data.find(b"\xff\xdd\0\4")
    return int.from_bytes(data[at + 4 : at + 6], "big") if at >= 0 else 0


LOSSLESS = TranscodeSpec(kind="lossless")


@needs_native
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (96, 64), (104, 40), (131, 77)])
def test_lossless_keeps_every_pixel(
    size: tuple[int, int], mode: str, progressive: bool, subsampling: int
) -> None:
    options = {} if mode == "L" else {"subsampling": subsampling}
    before = _good(_jpeg(*size, mode, progressive=progressive, **options))
    after = transcode(before, LOSSLESS)
    assert np.array_equal(_pixels(after.stored), _pixels(before.stored))
    assert (after.width, after.height, after.state) == (*size, GOOD)
    assert check(after.stored, RULES).notes == ()
    assert b"\xff\xc2" not in after.stored[:400], "progressive becomes baseline"


@needs_native
@pytest.mark.parametrize(
    ("width", "interval"),
    [(96, 6), (64, 8), (56, 7), (80, 5), (32, 4), (88, 11), (24, 3), (128, 8)],
)
def test_restart_markers_cut_rows_into_segments_of_4_to_8_blocks(width: int, interval: int) -> None:
    data = _jpeg(width, 24, subsampling=0)  # one block of 8 px wide is one MCU
    assert _restart_interval(transcode(_good(data), LOSSLESS).stored) == interval
    plain = transcode(_good(data), TranscodeSpec(kind="lossless", restarts=False))
    assert _restart_interval(plain.stored) == 0


@needs_native
def test_lossless_without_restarts_never_grows_and_drops_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a long description " * 50
    data = _jpeg(200, 150, exif=exif, icc_profile=b"a colour profile")
    after = transcode(_good(data), TranscodeSpec(kind="lossless", restarts=False)).stored
    assert len(after) < len(data) - 900
    image = Image.open(io.BytesIO(after))
    assert not image.getexif() and image.info["icc_profile"] == b"a colour profile"
    again = transcode(_good(after), TranscodeSpec(kind="lossless", restarts=False)).stored
    assert again == after


@needs_native
def test_all_real_images_keep_their_pixels(real_data: Path) -> None:
    with tarfile.open(real_data / "imagenet-sample.tar") as tar:
        images = [tar.extractfile(m) for m in tar if m.isfile()]
        for file in images[::8]:
            assert file is not None
            before = _good(file.read())
            after = transcode(before, LOSSLESS)
            assert np.array_equal(_pixels(after.stored), _pixels(before.stored))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("size", "target"),
    [((500, 375), (341, 256)), ((375, 500), (256, 341)), ((256, 256), (256, 256)),
     ((1025, 257), (1021, 256)), ((255, 900), (255, 900)), ((2048, 1024), (512, 256))],
)  # fmt: skip
def test_resize_gives_the_short_side_and_never_enlarges(
    size: tuple[int, int],
    target: tuple[int, int],
    mode: str,
    native: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if native and module._NATIVE is None:
        pytest.skip("data_prep._native was not built: no libjpeg-turbo here")
    if not native:
        monkeypatch.setattr(module, "_NATIVE", None)
    before = _good(_jpeg(*size, mode))
    after = transcode(before, TranscodeSpec.read("resize:256:q90"))
    assert (after.width, after.height) == target == Image.open(io.BytesIO(after.stored)).size
    wanted = Image.open(io.BytesIO(before.stored)).convert("RGB")
    wanted = np.asarray(wanted.resize(target, Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(_pixels(after.stored) - wanted).mean() < 4, "antialiased, and nothing shifted"


@pytest.mark.parametrize("native", [True, False])
def test_resize_keeps_the_colour_profile(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if native and module._NATIVE is None:
        pytest.skip("data_prep._native was not built: no libjpeg-turbo here")
    if not native:
        monkeypatch.setattr(module, "_NATIVE", None)
    profile = bytes(range(256)) * 300  # over one marker's 64 KB
    before = _good(_jpeg(300, 200, icc_profile=profile))
    after = transcode(before, TranscodeSpec.read("resize:100"))
    assert Image.open(io.BytesIO(after.stored)).info["icc_profile"] == profile


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("quality", "is_kept"), [(98, False), (89, True), (60, True)])
def test_a_small_image_is_encoded_anew_only_where_that_saves_a_tenth(
    quality: int, is_kept: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native and module._NATIVE is None:
        pytest.skip("data_prep._native was not built: no libjpeg-turbo here")
    if not native:
        monkeypatch.setattr(module, "_NATIVE", None)
    before = _good(_jpeg(200, 150, quality=quality, subsampling=2))
    after = transcode(before, TranscodeSpec.read("resize:256:q90"))
    assert (after.stored == before.stored) == is_kept
    assert (after.width, after.height) == (200, 150)
    assert is_kept or len(after.stored) < 0.9 * len(before.stored)
    assert np.abs(_pixels(after.stored) - _pixels(before.stored)).mean() < 4


@needs_native
@pytest.mark.parametrize("native", [True, False])
def test_a_jpeg_coded_as_rgb_is_resized_to_the_same_colours(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(module, "_NATIVE", None)
    spec = TranscodeSpec(kind="resize", short_px=50, quality=95)
    coded_as_rgb = transcode(_good(_jpeg(160, 100, keep_rgb=True)), spec)
    usual = transcode(_good(_jpeg(160, 100, subsampling=0)), spec)
    assert (coded_as_rgb.width, coded_as_rgb.height) == (80, 50)
    assert np.abs(_pixels(coded_as_rgb.stored) - _pixels(usual.stored)).mean() < 3


@pytest.mark.parametrize("native", [True, False])
def test_what_only_the_header_check_let_in_is_rejected_where_it_cannot_be_resized(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(module, "_NATIVE", None)
    lossless_sof = _jpeg(160, 100).replace(b"\xff\xc0", b"\xff\xc3")
    found = check(lossless_sof, CleanRules(decode="header"))
    assert found.state == GOOD
    resized = transcode(found, TranscodeSpec(kind="resize", short_px=50))
    assert (resized.state, resized.stored) == (REJECTED, b"")
    assert resized.notes[-1][0] == "cannot be decoded"


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_extension_resizes_as_pillow_does(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _good(_jpeg(389, 263, mode))
    spec = TranscodeSpec.read("resize:100")
    ours = transcode(before, spec)
    monkeypatch.setattr(module, "_NATIVE", None)
    theirs = transcode(before, spec)
    assert np.abs(_pixels(ours.stored) - _pixels(theirs.stored)).mean() < 0.5


def test_none_and_pngs_stay_as_they_are() -> None:
    verdict = _good(_jpeg(300, 300))
    assert transcode(verdict, TranscodeSpec()) is verdict
    png = verdict._replace(suffix="png")
    assert transcode(png, TranscodeSpec.read("resize:32")) is png


@pytest.mark.parametrize(
    "text", ["resize", "resize:0", "resize:x", "lossless:3", "none:1", "resize:256:90", "tiny"]
)
def test_wrong_choices_are_named(text: str) -> None:
    with pytest.raises(Misuse, match="--transcode"):
        TranscodeSpec.read(text)


def test_the_quality_can_be_chosen() -> None:
    assert TranscodeSpec.read("resize:320:q75").quality == 75
    assert TranscodeSpec.read("resize:320").short_px == 320
    verdict = _good(_jpeg(400, 400))
    sizes = [
        len(transcode(verdict, TranscodeSpec.read(f"resize:200:q{q}")).stored) for q in (40, 90)
    ]
    assert sizes[0] < sizes[1] / 2


def test_lossless_without_the_extension_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_NATIVE", None)
    with pytest.raises(Misuse, match="libjpeg-dev"):
        check_encoder(LOSSLESS)
    check_encoder(TranscodeSpec.read("resize:10"))


def test_what_decoders_warn_about_is_not_coded_anew() -> None:
    odd = _jpeg(64, 64)
    verdict = _good(odd[:-2] + b"\x12" * 32 + odd[-2:])
    if module._NATIVE is not None:
        kept = transcode(verdict, LOSSLESS)
        assert kept.stored == verdict.stored
        assert kept.notes[-1][0] == "not transcoded"
    assert transcode(verdict, TranscodeSpec.read("resize:32")).width == 32


def test_the_encoder_is_named_with_its_version() -> None:
    assert ENCODER.split()[0] in ("libjpeg-turbo", "Pillow")
    assert ENCODER.split()[-1][0].isdigit()


@needs_native
def test_hostile_bytes_never_crash_the_extension() -> None:
    code = """
import random, sys
from data_prep import _native
base = sys.stdin.buffer.read()
random.seed(0)
done = 0
for _ in range(3000):
    bad = bytearray(base[: random.randrange(len(base))] if random.random() < 0.2 else base)
    for _ in range(random.randint(1, 6)):
        if bad:
            where = min(len(bad), random.choice([200, 700, len(bad)]))
            bad[random.randrange(where)] = random.randrange(256)
    for call, args in ((_native.lossless, (True,)), (_native.resize, (9, 90))):
        try:
            call(bytes(bad), *args)
            done += 1
        except ValueError as error:
            assert str(error).startswith("libjpeg: "), error
print(done)
"""
    base = _jpeg(90, 60)
    run = subprocess.run(
        [sys.executable, "-c", code], input=base, capture_output=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr.decode()[-500:]
    assert int(run.stdout) > 100


@needs_native
def test_wrong_arguments_of_the_extension_are_errors() -> None:
    assert module._NATIVE is not None
    with pytest.raises(ValueError, match="out of range"):
        module._NATIVE.resize(_jpeg(20, 20), 0, 90)
    assert module._NATIVE.resize(_jpeg(20, 30), 50, 90)[1:] == (20, 30), "never enlarged"
    with pytest.raises(TypeError):
        module._NATIVE.lossless("text", True)
