"""Decoding: torchvision's pixels, odd and broken images, evaluation, with and without extension."""

import io
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.data import decode
from pipeline.data.augment import AugmentSpec, crop_box
from pipeline.data.decode import BrokenImage, decode_crop, decode_eval, decode_train, open_rgb
from pipeline.data.decode_safe import View, show
from pipeline.data.ops import apply_ops
from pipeline.data.preprocess import PreprocessSpec
from pipeline.plan.draws import Stream, keyed


def encode(pixels: np.ndarray, format: str = "PNG", mode: str | None = None, **options) -> bytes:
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rng(sample_id: int = 0) -> np.random.Generator:
    return keyed(Stream.AUGMENT, 0, 0, sample_id)


@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 10**6))
def test_a_crop_lies_in_the_image(width, height, seed):
    left, top, right, bottom = crop_box(width, height, AugmentSpec(), rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_crops_have_the_area_and_ratio_asked_for():
    spec = AugmentSpec(crop_area=(0.2, 0.4))
    boxes = np.array([crop_box(400, 300, spec, rng(i)) for i in range(3000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 120_000, width / height
    assert 0.197 < area.min() < 0.21 and 0.39 < area.max() < 0.403
    assert abs(area.mean() - 0.3) < 0.005
    assert ratio.min() > 0.73 and ratio.max() < 1.36
    assert abs(np.log(ratio).mean()) < 0.02  # log-uniform, so wide and high alike


@pytest.mark.parametrize(
    ("size", "box"), [((900, 100), (383, 0, 516, 100)), ((100, 900), (0, 383, 100, 516))]
)
def test_where_no_draw_fits_the_largest_centre_crop_is_taken(
    size: tuple[int, int], box: tuple[int, int, int, int]
):
    spec = AugmentSpec(crop_area=(1.0, 1.0))
    assert crop_box(*size, spec, rng()) == box


def test_pixels_equal_torchvisions_resized_crop():
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    data = encode(noise(120, 150), "JPEG", quality=95)
    spec = AugmentSpec(hflip=False, kind="none")
    left, top, right, bottom = crop_box(150, 120, spec, rng(4))
    expected = functional.resized_crop(
        Image.open(io.BytesIO(data)), top, left, bottom - top, right - left, [32, 32]
    )
    assert np.array_equal(decode_train(data, 32, spec, 0, rng(4)), np.asarray(expected))


def test_the_same_key_gives_the_same_pixels_and_another_key_others(make_jpeg):
    data = make_jpeg(1)
    images = [decode_train(data, 24, AugmentSpec(), 9.0, rng(i)) for i in (5, 5, 6)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])
    assert images[0].shape == (24, 24, 3) and images[0].dtype == np.uint8


def test_a_stage_change_keeps_the_crop_and_flip(make_jpeg):
    """Size and magnitude change with the stage; what was drawn for a sample does not."""
    spec = AugmentSpec(kind="none")
    small, large = (decode_train(make_jpeg(1), px, spec, 0, rng(3)) for px in (16, 64))
    shrunk = np.asarray(Image.fromarray(large).resize((16, 16)))
    assert np.abs(shrunk.astype(int) - small).mean() < 6


def test_half_of_the_images_are_flipped():
    ramp = encode(np.tile(np.arange(32, dtype=np.uint8)[None, :, None] * 8, (32, 1, 3)))
    spec = AugmentSpec(crop_area=(1, 1), crop_ratio=(1, 1), kind="none")
    images = [decode_train(ramp, 32, spec, 0, rng(i)) for i in range(400)]
    flipped = np.mean([image[0, 0, 0] > image[0, -1, 0] for image in images])
    assert 0.42 < flipped < 0.58
    still = AugmentSpec(crop_area=(1, 1), crop_ratio=(1, 1), kind="none", hflip=False)
    assert all(decode_train(ramp, 32, still, 0, rng(i))[0, 0, 0] == 0 for i in range(20))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_jpeg_colour_space_becomes_rgb(mode):
    grey = np.full((20, 30, 3), 100, np.uint8)
    image = np.asarray(open_rgb(encode(grey, "JPEG", mode)))
    assert image.shape == (20, 30, 3)
    assert np.abs(image.astype(int) - 100).max() <= 3


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1", "L"])
def test_every_png_mode_becomes_rgb(mode):
    image = np.asarray(open_rgb(encode(np.full((4, 4, 3), 255, np.uint8), "PNG", mode)))
    assert image.shape == (4, 4, 3) and image.min() == 255


def test_sixteen_bit_grey_keeps_its_upper_bits():
    data = encode(np.full((4, 4), 0x8012, np.uint16))
    assert np.asarray(open_rgb(data)).tolist() == [[[0x80] * 3] * 4] * 4


def test_a_png_named_jpeg_and_a_webp_are_read():
    for format in ("PNG", "WEBP"):
        assert decode_train(encode(noise(9, 9), format), 8, AugmentSpec(), 5, rng()).any()


def test_one_pixel_is_enough():
    data = encode(np.full((1, 1, 3), 77, np.uint8))
    assert (decode_train(data, 8, AugmentSpec(kind="none"), 0, rng()) == 77).all()
    assert (decode_eval(data, PreprocessSpec(), 8) == 77).all()


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert open_rgb(encode(noise(20, 30), "JPEG", exif=exif)).size == (30, 20)


@pytest.mark.parametrize("cut", [0, 3, 100, 0.5, 0.95])
def test_a_cut_image_is_an_error_and_never_half_an_image(cut, make_jpeg):
    data = make_jpeg(3, 200, 150)
    data = data[: int(cut * len(data)) if cut < 1 else int(cut)]
    with pytest.raises(BrokenImage):
        decode_train(data, 16, AugmentSpec(), 5, rng())
    with pytest.raises(BrokenImage):
        decode_eval(data, PreprocessSpec(), 16)


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"GIF89a" + bytes(100), b"%!PS-Adobe-3.0"])
def test_other_formats_are_refused(data):
    reason = rf"^not a whole image \({len(data)} bytes of no known image type\)$"
    with pytest.raises(BrokenImage, match=reason):
        open_rgb(data)


def test_a_decompression_bomb_is_refused():
    header = bytearray(encode(np.zeros((1, 1, 3), np.uint8)))
    header[16:24] = (20_000).to_bytes(4, "big") * 2  # width and height in the PNG header
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(BrokenImage, match="too large"):
        open_rgb(bytes(header))


@pytest.mark.parametrize(
    ("rule", "px", "size", "box"),
    [
        ("auto", 319, (500, 400), (68, 18, 431, 381)),
        ("auto", 320, (500, 400), (0, 0, 500, 400)),
        ("squash", 64, (500, 400), (0, 0, 500, 400)),
        ("center", 480, (500, 400), (63, 13, 438, 388)),
        ("center", 224, (256, 256), (16, 16, 240, 240)),
        ("center", 1, (1, 1), (0, 0, 1, 1)),
    ],
)
def test_evaluation_takes_the_official_part_of_the_image(rule, px, size: tuple[int, int], box):
    assert PreprocessSpec(eval_resize=rule).box(*size, px) == box


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_evaluation_resizes_with_the_filter_asked_for(name):
    data = encode(noise(64, 64))
    spec = PreprocessSpec(eval_resize="squash", interpolation=name)
    expected = Image.open(io.BytesIO(data)).resize((24, 24), Image.Resampling[name.upper()])
    assert np.array_equal(decode_eval(data, spec, 24), np.asarray(expected))


def test_without_antialias_single_points_are_sampled():
    """Bilinear at half-pixel centres, checked against torch's interpolation."""
    torch = pytest.importorskip("torch")
    pixels = noise(64, 48)
    spec = PreprocessSpec(eval_resize="squash", antialias=False)
    ours = decode_eval(encode(pixels), spec, 20)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(tensor, (20, 20), mode="bilinear")
    assert np.abs(theirs[0].permute(1, 2, 0).numpy() - ours).max() <= 1.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_area": (0.5, 0.1)},
        {"crop_area": (0.1, 1.5)},
        {"crop_ratio": (0, 1)},
        {"kind": "autoaugment"},
        {"reference_px": 0},
    ],
)
def test_wrong_augment_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        AugmentSpec(**wrong)


def test_a_std_of_zero_is_refused():
    with pytest.raises(ValidationError, match="0..255"):
        PreprocessSpec(std=(1, 0, 1))


def test_settings_and_decoding_need_no_torch(repo):
    rooms = ["augment", "preprocess", "loading", "order", "policies", "ops", "decode", "reader"]
    imports = "; ".join(f"import pipeline.data.{room}" for room in rooms)
    check = f"{imports}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=repo, timeout=60).returncode == 0


KINDS = {
    "jpeg": encode(noise(50, 70), "JPEG", quality=92),
    "subsampled": encode(noise(90, 71), "JPEG", subsampling=2),
    "grey": encode(noise(33, 44), "JPEG", "L"),
    "restarts": encode(noise(64, 64), "JPEG", subsampling=0, restart_marker_blocks=2),
    "progressive": encode(noise(61, 52), "JPEG", progressive=True),
    "cmyk": encode(noise(40, 40), "JPEG", "CMYK"),
    "png": encode(noise(30, 41)),
    "webp": encode(noise(41, 30), "WEBP", lossless=True),
    "one": encode(noise(1, 1), "JPEG"),
}
SPECS = {
    "default": AugmentSpec(),
    "bicubic": AugmentSpec(interpolation="bicubic", kind="none"),
    "points": AugmentSpec(antialias=False, kind="none"),
    "squash": AugmentSpec(crop="squash", kind="none"),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_extension_changes_no_pixel(kind, name, monkeypatch):
    pytest.importorskip("pipeline.data._native", reason="the extension was not built")
    data, spec = KINDS[kind], SPECS[name]
    with_extension = [decode_train(data, 24, spec, 7.0, rng(i)) for i in range(12)]
    monkeypatch.setattr(decode, "_NATIVE", None)
    without = [decode_train(data, 24, spec, 7.0, rng(i)) for i in range(12)]
    assert np.array_equal(with_extension, without)


@pytest.mark.parametrize("rule", ["squash", "center"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_extension_changes_no_pixel_of_an_evaluation(kind, antialias, rule, monkeypatch):
    pytest.importorskip("pipeline.data._native", reason="the extension was not built")
    spec = PreprocessSpec(eval_resize=rule, antialias=antialias, interpolation="bicubic")
    with_extension = [decode_eval(KINDS[kind], spec, px) for px in (8, 31, 80)]
    monkeypatch.setattr(decode, "_NATIVE", None)
    for px, image in zip((8, 31, 80), with_extension, strict=True):
        assert np.array_equal(image, decode_eval(KINDS[kind], spec, px))


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_written_where_they_are_wanted(kind):
    batch = np.zeros((3, 24, 24, 3), np.uint8)
    data, spec = KINDS[kind], AugmentSpec()
    returned = decode_train(data, 24, spec, 7.0, rng(2), batch[1])
    assert np.shares_memory(returned, batch)
    assert np.array_equal(batch[1], decode_train(data, 24, spec, 7.0, rng(2)))
    decode_eval(data, PreprocessSpec(), 24, batch[1])
    assert np.array_equal(batch[1], decode_eval(data, PreprocessSpec(), 24))
    assert not batch[0].any() and not batch[2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_operations_may_be_left_to_a_device(kind):
    """The crop is the one without a policy, and the operations are those drawn for the sample."""
    data, out = KINDS[kind], np.empty((24, 24, 3), np.uint8)
    drawn = decode_crop(data, 24, AugmentSpec(), 7.0, rng(8), out)
    assert len(drawn.ops) == 2
    assert np.array_equal(out, decode_train(data, 24, AugmentSpec(kind="none"), 0, rng(8)))
    apply_ops(out, drawn.ops)
    assert np.array_equal(out, decode_train(data, 24, AugmentSpec(), 7.0, rng(8)))


def test_bytes_may_be_a_view_of_a_shard(make_jpeg):
    for own in (make_jpeg(1), KINDS["png"]):
        view = memoryview(b"header" + own + b"padding")[6 : 6 + len(own)]
        image = decode_train(view, 16, AugmentSpec(), 5, rng())
        assert np.array_equal(image, decode_train(own, 16, AugmentSpec(), 5, rng()))


def test_a_file_whose_headers_disagree_is_broken():
    """The extension reads the first size, Pillow the last."""
    pytest.importorskip("pipeline.data._native", reason="the extension was not built")
    data = KINDS["progressive"]
    frame = data.index(b"\xff\xc2")
    length = int.from_bytes(data[frame + 2 : frame + 4], "big")
    other = bytearray(data[frame : frame + 2 + length])
    other[5:7] = (9).to_bytes(2, "big")
    with pytest.raises(BrokenImage):
        doubled = data[:frame] + bytes(other) + data[frame:]
        decode_train(doubled, 16, AugmentSpec(), 5, rng())


def test_pixels_do_not_depend_on_pillows_version():
    """Pillow 13 changed which direction goes first; what it chooses is fixed here."""
    pixels = noise(400, 90)
    out = np.empty((50, 70, 3), np.uint8)
    show(Image.fromarray(pixels), View((0, 0, 90, 400)), out)
    bilinear = Image.Resampling.BILINEAR
    down = Image.fromarray(pixels).resize((90, 50), bilinear).resize((70, 50), bilinear)
    across = Image.fromarray(pixels).resize((70, 400), bilinear).resize((70, 50), bilinear)
    assert np.array_equal(out, np.asarray(down)) and not np.array_equal(out, np.asarray(across))


def test_a_missing_extension_is_said_once(monkeypatch):
    monkeypatch.setattr(decode, "_NATIVE", None)
    decode.warn_if_slow.cache_clear()
    with pytest.warns(UserWarning, match=r"_native was not built.*make env"):
        decode.warn_if_slow()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode.warn_if_slow()
        decode.warn_if_slow.cache_clear()
        monkeypatch.undo()
        if decode._NATIVE is not None:
            decode.warn_if_slow()
