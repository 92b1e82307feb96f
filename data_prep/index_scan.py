"""One tar made by others: its samples, their sizes and checksums, and a code for each label."""

import io
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.catalogue import Note
from data_prep.samples import Label, Sample, scan
from data_prep.write import index_entries, sha256_of

MAX_IMAGE_BYTES = 128 << 20
MAX_SIDE_PX = 65_535
"""The largest side of a JPEG, and what the index can hold."""
FORMATS = ("JPEG", "PNG", "WEBP")


class Task(NamedTuple):
    """One tar, `folder / file`."""

    folder: Path
    file: str
    label_field: str


class Scanned(NamedTuple):
    """What the index of one tar follows from; about 40 bytes for a sample."""

    file: str
    num_bytes: int
    sha256: str
    entries: np.ndarray
    """(N,) ENTRY of the usable samples."""
    vocabulary: tuple[Label, ...]
    codes: np.ndarray
    """The flat labels, as numbers in `vocabulary`."""
    rejected: list[Note]
    """`file` is the path of the tar below the folder, a slash, and the key."""
    apart: str
    """A key whose members do not lie together."""


class _Unusable(ValueError):
    """Why an image cannot be used."""


def scan_tar(task: Task) -> Scanned:
    """Read a tar; Misuse where it is damaged or breaks the rules of `samples.scan`."""
    tar = task.folder / task.file
    found = scan(tar, task.label_field)
    rejected = list(found.broken)
    samples: list[Sample] = []
    measured: list[tuple[int, int, int]] = []
    handle = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for sample in found.samples:
            try:
                measured.append(_measure(handle, sample))
                samples.append(sample)
            except _Unusable as error:
                rejected.append(Note(sample.key, "bad image", str(error)))
    finally:
        os.close(handle)
    codes: dict[Label, int] = {}
    flat = [codes.setdefault(label, len(codes)) for s in samples for label in s.labels]
    sizes = np.array(measured, np.int64).reshape(-1, 3)
    counts = [len(sample.labels) for sample in samples]
    entries = index_entries(samples, counts, sizes[:, 0], sizes[:, 1:])
    return Scanned(
        file=task.file,
        num_bytes=tar.stat().st_size,
        sha256=sha256_of(tar),
        entries=entries,
        vocabulary=tuple(codes),
        codes=np.array(flat, np.int32),
        rejected=[note._replace(file=f"{task.file}/{note.file}") for note in rejected],
        apart=found.apart,
    )


def _measure(handle: int, sample: Sample) -> tuple[int, int, int]:
    """Return crc32c, width and height (px) of one image."""
    if sample.size > MAX_IMAGE_BYTES:
        raise _Unusable(f"its image has {sample.size} bytes, over {MAX_IMAGE_BYTES}")
    data = os.pread(handle, sample.size, sample.offset)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except UnidentifiedImageError:
        raise _Unusable(f"no JPEG, PNG or WebP: starts with {data[:4].hex(' ')}") from None
    except Exception as error:  # whatever a parser raises on hostile bytes
        raise _Unusable(f"its image cannot be used: {type(error).__name__}: {error}") from None
    if max(width, height) > MAX_SIDE_PX:
        raise _Unusable(f"its image of {width}x{height} px has a side over {MAX_SIDE_PX}")
    return google_crc32c.value(data), width, height
