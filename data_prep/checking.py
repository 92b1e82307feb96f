"""First pass: decode every image once, over processes, and remember the verdicts on disk.

A chunk of images is one task and one file in the work folder, so that an interrupted pass goes on
where it stopped.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from data_prep.clean import GOOD, REJECTED, Verdict, check, reject
from data_prep.failure import naming_full_disk
from data_prep.pool import Progress, run
from data_prep.sources import Listing, Place, Reader
from pipeline.run.files import read_json, write_json

CHUNK = 256
VERDICT = np.dtype(
    [
        ("state", "u1"),  # clean.GOOD, REPAIRED or REJECTED
        ("width", "<u2"),
        ("height", "<u2"),
        ("size", "<u4"),  # bytes to store
        ("crc32c", "<u4"),  # of the bytes to store
        ("twin", "<u8"),  # 64 bits of the content's hash: equal for byte-identical files
    ]
)


@dataclass
class Checked:
    """Verdicts in the order of the listing; notes are (row, kind, reason) of all but good ones."""

    verdicts: np.ndarray = field(default_factory=lambda: np.zeros(0, VERDICT))
    notes: list[tuple[int, str, str]] = field(default_factory=list)


class _Chunk(NamedTuple):
    start: int
    places: list[Place]
    root: Path
    fingerprint: str
    file: Path


def check_all(listing: Listing, work: Path, workers: int) -> Checked:
    """Check all candidates of a listing; `work` keeps what is done.

    Raises:
        Failed: a worker died or the disk is full.
    """
    work.mkdir(parents=True, exist_ok=True)
    verdicts = np.zeros(len(listing), VERDICT)
    notes: list[tuple[int, str, str]] = []
    with (
        naming_full_disk(work, 64 * len(listing)),
        Progress("check", "images", len(listing)) as progress,
    ):
        for start, values, found in run(_check_chunk, _chunks(listing, work), workers):
            verdicts[start : start + len(values)] = values
            notes += [(start + row, kind, reason) for row, kind, reason in found]
            progress.add(len(values))
    return Checked(verdicts, sorted(notes))


def fetch(reader: Reader, place: Place) -> Verdict:
    """Read and judge one image; one that cannot be read is a reject like any other."""
    try:
        return check(reader.read(place))
    except OSError as error:
        return reject("cannot be read", f"cannot be read: {error.strerror}")


def _chunks(listing: Listing, work: Path) -> Iterator[_Chunk]:
    for start in range(0, len(listing), CHUNK):
        places = listing.places[start : start + CHUNK]
        yield _Chunk(start, places, listing.root, listing.fingerprint, work / f"{start:09d}.json")


def _check_chunk(chunk: _Chunk) -> tuple[int, np.ndarray, list[tuple[int, str, str]]]:
    saved = read_json(chunk.file)
    key = _key(chunk)
    if not isinstance(saved, dict) or saved.get("key") != key:
        saved = {"key": key, **_judge(chunk)}
        write_json(chunk.file, saved)
    values = np.array([tuple(row) for row in saved["verdicts"]], VERDICT)
    return chunk.start, values, [(row, kind, reason) for row, kind, reason in saved["notes"]]


def _key(chunk: _Chunk) -> str:
    text = chunk.fingerprint + "\n".join(f"{place!r}" for place in chunk.places)
    return hashlib.sha256(text.encode()).hexdigest()


def _judge(chunk: _Chunk) -> dict[str, list[tuple[int | str, ...]]]:
    reader = Reader(chunk.root)
    verdicts, notes = [], []
    for row, place in enumerate(chunk.places):
        found = fetch(reader, place)
        if found.state != GOOD:
            notes.append((row, found.kind, found.reason))
        verdicts.append((found.state, found.width, found.height, *_measure(found)))
    reader.close()
    return {"verdicts": verdicts, "notes": notes}


def _measure(found: Verdict) -> tuple[int, int, int]:
    """Return (bytes, crc32c, hash) of what is to be stored."""
    if found.state == REJECTED:
        return 0, 0, 0
    twin = hashlib.blake2b(found.stored, digest_size=8).digest()
    crc = google_crc32c.value(found.stored)
    return len(found.stored), crc, int.from_bytes(twin, "little")
