"""Perceptual hashes: near images are near, and the search misses no pair."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from data_prep.phash import near_pairs, phash


def _picture(seed: int, size: int = 96) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_the_same_picture_in_other_bytes_is_near_and_another_is_not() -> None:
    base = phash(_jpeg(_picture(0)))
    alike = [
        _jpeg(_picture(0), quality=60),
        _jpeg(_picture(0).resize((61, 61))),
        _jpeg(ImageEnhance.Brightness(_picture(0)).enhance(1.1)),
    ]
    for data in alike:
        assert (base ^ phash(data)).bit_count() <= 4
    others = [phash(_jpeg(_picture(seed))) for seed in range(1, 20)]
    assert min((base ^ other).bit_count() for other in others) > 12
    assert 0 <= base < 1 << 64


def _brute(hashes: np.ndarray, distance: int) -> list[tuple[int, int]]:
    close = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= distance
    return [(int(i), int(j)) for i, j in np.argwhere(close) if i < j]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 3), min_size=0, max_size=40),
    st.integers(0, 7),
    st.integers(0, 1 << 30),
)
def test_the_search_finds_exactly_the_pairs_that_comparing_all_finds(
    centres: list[int], distance: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bases = rng.integers(0, 1 << 63, 4, dtype=np.uint64)
    hashes = bases[np.array(centres, np.int64)] if centres else np.zeros(0, np.uint64)
    for _ in range(5):  # up to five bits away from a centre
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, len(hashes), dtype=np.uint64))
    pairs = list(map(tuple, near_pairs(hashes, distance).tolist()))
    assert pairs == _brute(hashes, distance)


def test_many_equal_hashes_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.phash._BLOCK_PAIRS", 50)
    assert len(near_pairs(np.zeros(40, np.uint64), 0)) == 40 * 39 // 2
