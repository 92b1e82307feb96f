"""Some images of a split, drawn by seed, small enough for a page.

Every thumbnail is decoded and encoded here: no byte of an image gets into the page as it came.
"""

import base64
import io
import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c
import numpy as np
from PIL import Image

from pipeline.data.index import SplitIndex

SIDE_PX = 160
_QUALITY = 82
_MAX_IMAGE_BYTES = 128 << 20


class Thumbnail(NamedTuple):
    """One image for a contact sheet; `problem` says why there is none."""

    key: str
    labels: tuple[int, ...]
    width: int
    height: int
    num_bytes: int
    data_uri: str
    problem: str


def draw(index: SplitIndex, count: int, seed: int) -> Iterator[Thumbnail]:
    """Yield `count` images of a split (all, if it has fewer), drawn by seed, in random order.

    Raises:
        Misuse: an index is missing or damaged.
    """
    chosen = np.random.default_rng(seed).choice(len(index), min(count, len(index)), replace=False)
    for sample_id in chosen.tolist():
        yield _thumbnail(index, sample_id)


def _thumbnail(index: SplitIndex, sample_id: int) -> Thumbnail:
    entry, labels = index.entry(sample_id), index.labels(sample_id)
    size, width, height = int(entry["size"]), int(entry["width"]), int(entry["height"])
    key = data_uri = problem = ""
    try:
        key = index.key(sample_id)
        data_uri = _data_uri(_read(index, sample_id, entry))
    except Exception as error:  # whatever damaged tars and images make tarfile and Pillow raise
        problem = (
            str(error) if isinstance(error, _Damaged) else f"no image ({type(error).__name__})"
        )
    return Thumbnail(key, labels, width, height, size, data_uri, problem)


class _Damaged(ValueError):
    """The bytes of an image are not those of the index."""


def _read(index: SplitIndex, sample_id: int, entry: np.void) -> bytes:
    shard, _ = index.locate(sample_id)
    handle = os.open(index.tar(shard), os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(handle, min(int(entry["size"]), _MAX_IMAGE_BYTES), int(entry["offset"]))
    finally:
        os.close(handle)
    if google_crc32c.value(data) != int(entry["crc32c"]):
        raise _Damaged("damaged (crc32c differs)")
    return data


def _data_uri(data: bytes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            image.thumbnail((SIDE_PX, SIDE_PX))
            small = io.BytesIO()
            image.convert("RGB").save(small, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode()}"
