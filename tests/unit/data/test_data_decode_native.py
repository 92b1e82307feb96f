"""The extension's care: what it leaves to Pillow, hostile bytes, bad arguments, threads, memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from pipeline.data.decode_safe import View
from pipeline.data.preprocess import Box
from tests.unit.data.jpegs import SUBSAMPLINGS, crop, expected, jpeg, random_box, subsampled

native = pytest.importorskip("pipeline.data._native", reason="the extension was not built")


@pytest.mark.parametrize(
    "data",
    [
        jpeg(progressive=True),
        jpeg(mode="CMYK"),
        jpeg() + b"\0",
        jpeg()[:-2],
        jpeg()[:-1] + b"\xd8",
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"<html></html>",
        jpeg()[:200] + b"\xff\xd9",
    ],
    ids=[
        "progressive",
        "cmyk",
        "tail",
        "no end",
        "other end",
        "empty",
        "start",
        "both",
        "html",
        "cut",
    ],
)
def test_what_is_unusual_or_broken_is_left_to_another_decoder(data: bytes) -> None:
    assert crop(data, (0, 0, 1, 1), (4, 4)) is None


def test_a_cut_file_is_never_taken_wherever_it_is_cut() -> None:
    for data in (jpeg(64, 48), jpeg(64, 48, restart_marker_blocks=2, subsampling=0)):
        for end in range(len(data)):
            assert crop(data[:end], (0, 0, 64, 48), (4, 4)) is None


def test_a_file_cut_short_and_ended_again_is_noticed_where_pixels_are_missing() -> None:
    data = jpeg(128, 128)
    cut = data[: len(data) // 2] + b"\xff\xd9"
    assert crop(cut, (0, 0, 128, 128), (4, 4)) is None


def test_a_bomb_is_left_to_pillows_judgement() -> None:
    data = bytearray(jpeg(16, 16))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = b"\xff\xdc" * 2
    with pytest.raises(ValueError, match="no baseline JPEG"):
        native.size(bytes(data))
    assert crop(bytes(data), (0, 0, 10, 10), (4, 4)) is None


def test_flipped_bits_never_harm_and_give_pillows_pixels_where_they_pass() -> None:
    data, rng = jpeg(64, 64, quality=90), np.random.default_rng(0)
    taken = 0
    for _ in range(400):
        spoilt = bytearray(data)
        spoilt[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        try:
            size = native.size(bytes(spoilt))
            found = crop(bytes(spoilt), (0, 0, *size), (16, 16))
        except ValueError:
            continue
        if found is None or size[0] * size[1] > 10**6:
            continue
        taken += 1
        assert np.array_equal(found, expected(bytes(spoilt), View((0, 0, *size)), (16, 16)))
    assert taken > 100


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", jpeg()[:30], jpeg()[2:], bytes(64)]
)
def test_a_size_is_told_only_of_jpegs(data: bytes) -> None:
    with pytest.raises(ValueError, match="no baseline JPEG"):
        native.size(data)


def test_sizes_are_told_of_what_can_be_taken_and_of_nothing_else() -> None:
    assert native.size(jpeg(31, 17, comment=b"x" * 60_000)) == (31, 17)
    assert native.size(jpeg(31, 17, "L")) == (31, 17)
    for data in (jpeg(31, 17, progressive=True), jpeg(31, 17, "CMYK")):
        with pytest.raises(ValueError, match="no baseline JPEG of YCbCr or grey"):
            native.size(data)


@pytest.mark.parametrize(
    "box", [(0, 0, 101, 75), (0, 0, 100, 76), (-1, 0, 5, 5), (5, 5, 5, 6), (5, 9, 6, 8)]
)
def test_a_box_that_is_no_part_of_the_image_is_refused(box: Box) -> None:
    with pytest.raises(ValueError, match="no part of an image of 100 x 75"):
        crop(jpeg(), box, (8, 8))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((8, 8, 4), np.uint8),
        np.empty((8, 8), np.uint8),
        np.empty((8, 8, 3), np.int8),
        np.empty((8, 8, 3), np.uint16),
        np.empty((0, 8, 3), np.uint8),
        np.empty((8, 16, 3), np.uint8)[:, ::2],
        np.frombuffer(bytes(192), np.uint8).reshape(8, 8, 3),
    ],
    ids=["four", "flat", "signed", "wide", "empty", "steps", "readonly"],
)
def test_only_rows_of_bytes_are_written_to(out: np.ndarray) -> None:
    with pytest.raises((ValueError, BufferError)):
        native.crop_resize(jpeg(), (0, 0, 8, 8), out, 0, False)


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="filter 4"):
        crop(jpeg(), (0, 0, 8, 8), (8, 8), 4)


def test_any_buffer_of_bytes_is_read() -> None:
    data = jpeg()
    wanted = crop(data, (3, 4, 60, 70), (16, 16))
    assert wanted is not None
    for buffer in (bytearray(data), memoryview(b"xx" + data)[2:], np.frombuffer(data, np.uint8)):
        out = np.empty((16, 16, 3), np.uint8)
        assert native.crop_resize(buffer, (3, 4, 60, 70), out, 0, False)
        assert np.array_equal(out, wanted)


def test_processors_without_vectors_give_the_same_bytes() -> None:
    rng = np.random.default_rng(4)
    data = jpeg(300, 200, quality=90)
    for _ in range(60):
        box, size = random_box(300, 200, rng), (int(rng.integers(1, 99)), int(rng.integers(1, 99)))
        for filter in range(3):
            native.vectors(True)
            with_vectors = crop(data, box, size, filter, True)
            assert native.vectors(False) is False
            without = crop(data, box, size, filter, True)
            native.vectors(True)
            assert with_vectors is not None and without is not None
            assert np.array_equal(with_vectors, without)


def test_threads_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(5)
    kinds = [subsampled(200, 150, kind) for kind in SUBSAMPLINGS] + [jpeg()[:-9]]
    work = [(kinds[i % 7], (*rng.integers(0, 40, 2).tolist(), 90, 70)) for i in range(400)]
    alone = [crop(data, box, (48, 48)) for data, box in work]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: crop(item[0], item[1], (48, 48)), work))
    assert sum(found is None for found in alone) == 57
    for one, other in zip(alone, together, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or np.array_equal(one, other)


def test_nothing_is_kept_of_files_that_were_taken_or_refused() -> None:
    kinds = [
        jpeg(200, 200),
        jpeg(200, 200, restart_marker_blocks=5, subsampling=0),
        jpeg(200, 200)[:2000] + b"\xff\xd9",
        jpeg(progressive=True),
    ]

    def work() -> int:
        for number in range(2000):
            crop(kinds[number % 4], (20, 30, 90, 70), (64, 64))
        return psutil.Process().memory_info().rss

    work()
    before = work()
    assert work() - before < 2_000_000, "2000 files would leave over 1 kB each"
