"""The extension's crops: Pillow's pixels on real files and on odd ones, segments left unread."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode_safe import View
from tests.unit.data.jpegs import (
    FILTERS,
    SUBSAMPLINGS,
    crop,
    expected,
    jpeg,
    random_box,
    subsampled,
)

native = pytest.importorskip("pipeline.data._native", reason="the extension was not built")

SIZES = ((1, 1), (2, 3), (7, 9), (16, 16), (17, 31), (33, 50), (100, 75), (8, 130))


def check_random_crops(data: bytes, count: int, seed: int) -> None:
    """Some boxes, sizes, filters and flips: every pixel as Pillow's."""
    rng = np.random.default_rng(seed)
    width, height = native.size(data)
    for number in range(count):
        box = (0, 0, width, height) if number == 0 else random_box(width, height, rng)
        size = int(rng.integers(1, 60)), int(rng.integers(1, 60))
        filter, flip = int(rng.integers(3)), bool(rng.integers(2))
        wanted = expected(data, View(box, flip, *FILTERS[filter]), size)
        found = crop(data, box, size, filter, flip)
        assert found is not None, (box, size)
        assert np.array_equal(found, wanted), (box, size, filter, flip)


@pytest.fixture(scope="session")
def real_files(real_data: Path) -> list[bytes]:
    with tarfile.open(real_data / "imagenet-sample.tar") as tar:
        files = [tar.extractfile(member) for member in tar if member.isfile()]
        return [file.read() for file in files if file is not None]


def test_all_real_images_have_torchvisions_pixels(real_files: list[bytes]) -> None:
    """Every file at two of the four sizes: a mean difference under 0.1 of 255 is asked for."""
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    rng = np.random.default_rng(0)
    differences = {px: [] for px in (128, 224, 300, 380)}
    for number, data in enumerate(real_files):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        assert native.size(data) == image.size
        for px in ((128, 300), (224, 380))[number % 2]:
            box, flip = random_box(*image.size, rng), bool(rng.integers(2))
            left, top, right, bottom = box
            theirs = functional.resized_crop(image, top, left, bottom - top, right - left, [px, px])
            if flip:
                theirs = functional.horizontal_flip(theirs)
            ours = crop(data, box, (px, px), flip=flip)
            assert ours is not None
            differences[px].append(np.abs(ours - np.asarray(theirs, np.int16)).mean())
    assert [len(found) for found in differences.values()] == [400] * 4
    assert max(np.mean(found) for found in differences.values()) < 0.1


@pytest.mark.parametrize("kind", SUBSAMPLINGS)
@pytest.mark.parametrize("size", SIZES)
def test_every_subsampling_and_odd_size_has_pillows_pixels(
    kind: str, size: tuple[int, int]
) -> None:
    check_random_crops(subsampled(*size, kind), 25, seed=1)


@pytest.mark.parametrize(
    "options",
    [
        {"restart_marker_rows": 1, "subsampling": 0},
        {"restart_marker_blocks": 1, "subsampling": 0},
        {"restart_marker_blocks": 1, "subsampling": 2},
        {"restart_marker_blocks": 2, "subsampling": 1},
        {"restart_marker_blocks": 4, "mode": "L"},
        {"restart_marker_blocks": 3, "subsampling": 0},
        {"restart_marker_rows": 3, "subsampling": 2},
    ],
    ids=str,
)
def test_files_with_restart_markers_have_pillows_pixels(options: dict) -> None:
    for width, height in ((128, 96), (121, 99), (250, 40)):
        check_random_crops(jpeg(width, height, **options), 25, seed=2)


def test_files_of_the_lossless_transcoding_keep_their_pixels(real_files: list[bytes]) -> None:
    transcoder = pytest.importorskip("data_prep._native", reason="the extension was not built")
    rng = np.random.default_rng(3)
    for data in real_files[::10]:
        width, height = native.size(data)
        box = random_box(width, height, rng)
        before = crop(data, box, (96, 96))
        after = crop(transcoder.lossless(data, True), box, (96, 96))
        assert before is not None and after is not None
        assert np.array_equal(before, after)


@pytest.mark.parametrize("size", [(7, 443), (443, 7), (1, 449), (447, 2)])
@pytest.mark.parametrize("filter", range(3))
def test_every_scale_has_pillows_pixels(size: tuple[int, int], filter: int) -> None:
    """Near a scale of one the first and last weights of a bicubic filter round to nothing."""
    data = jpeg(*size, quality=95)
    for out_size in ((size[0] + 2, size[1] + 2), (3 * size[0], 2), (1, 1), (2, 2 * size[1] + 1)):
        found = crop(data, (0, 0, *size), out_size, filter)
        wanted = expected(data, View((0, 0, *size), False, *FILTERS[filter]), out_size)
        assert found is not None and np.array_equal(found, wanted), out_size


def test_a_whole_image_at_its_own_size_is_a_plain_decode() -> None:
    data = jpeg(53, 37, quality=90)
    found = crop(data, (0, 0, 53, 37), (53, 37))
    assert found is not None
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(data))))


def test_a_crop_never_reads_the_segments_beside_it() -> None:
    """Bytes of other segments may be anything; those of its own are noticed or shown."""
    data = bytearray(jpeg(256, 256, quality=95, restart_marker_blocks=4, subsampling=0))
    marks = [i for i in range(len(data) - 1) if data[i] == 0xFF and 0xD0 <= data[i + 1] <= 0xD7]
    assert len(marks) == 8 * 32 - 1
    box = 144, 144, 176, 176  # columns 4 and 5 of 8, rows 17 to 22 of 32, with the margin
    before = crop(bytes(data), box, (32, 32))
    spoilt = 0
    for number in range(len(marks) - 1):
        row, column = divmod(number + 1, 8)
        if not (17 <= row <= 22 and 4 <= column <= 5):
            data[marks[number] + 2 : marks[number + 1]] = bytes(
                marks[number + 1] - marks[number] - 2
            )
            spoilt += 1
    assert spoilt == 254 - 12
    after = crop(bytes(data), box, (32, 32))
    assert before is not None and after is not None
    assert np.array_equal(before, after)
    start = marks[18 * 8 + 4 - 1] + 2  # a segment that the crop needs
    data[start : start + 40] = bytes(40)
    spoilt_crop = crop(bytes(data), box, (32, 32))
    assert spoilt_crop is None or not np.array_equal(before, spoilt_crop)


def test_restart_markers_out_of_order_are_refused() -> None:
    data = bytearray(jpeg(256, 256, restart_marker_blocks=4, subsampling=0))
    mark = data.index(b"\xff\xd3")
    for wrong in (0xD4, 0xD9, 0xC4):
        data[mark + 1] = wrong
        assert crop(bytes(data), (200, 200, 210, 210), (8, 8)) is None
