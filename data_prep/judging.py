"""One chunk of the first pass: read its images, judge, transcode and measure each, keep the rest.

A chunk leaves in the folder of the pass

    000123.npy    (rows,) VERDICT
    000123.bin    the bytes to store of those images whose source bytes are not stored as they are
    000123.json   the notes, written last; it names the input and the digest of the other two

so that no image is ever decoded or encoded twice.
"""

import errno
import functools
import hashlib
import io
import json
import os
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from data_prep.catalogue import Place, Reader
from data_prep.clean import REJECTED, CleanRules, Verdict, check, check_pixels
from data_prep.failure import Failed
from data_prep.phash import phash
from data_prep.population import PIXELS, Population
from data_prep.tar import printable
from data_prep.transcode import TranscodeSpec, transcode
from pipeline.run.files import read_json
from pipeline.spec import Misuse

VERDICT = np.dtype(
    [
        ("state", "u1"),  # clean.GOOD, REPAIRED or REJECTED
        ("suffix", "u1"),  # number in SUFFIXES
        ("width", "<u2"),  # px, as stored
        ("height", "<u2"),
        ("size", "<u4"),  # bytes to store
        ("crc32c", "<u4"),  # of the bytes to store
        ("twin", "<u8"),  # first 64 bits of the sha256 of the bytes to store
        ("spool", "<u8"),  # where they start in the chunk's .bin; NOWHERE: the source has them
        ("phash", "<u8"),  # perceptual hash, where near duplicates are looked for
    ]
)
NOWHERE = (1 << 64) - 1
SUFFIXES = ("jpg", "png")
MAX_IMAGE_BYTES = 128 << 20
"""A larger file is rejected unread."""
_MAX_REASON = 300
_MAY_BE_MISSING = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


class Rules(NamedTuple):
    """The part of a BuildSpec that decides verdicts."""

    clean: CleanRules
    transcode: TranscodeSpec
    hashes: bool


class Chunk(NamedTuple):
    """Rows `start`..`end` of the population at `path`; `key` names all that verdicts follow from.

    `stem` + .npy, .bin and .json are the files to leave.
    """

    path: Path
    start: int
    end: int
    key: str
    stem: Path
    rules: Rules


def judge_chunk(chunk: Chunk) -> int:
    """Judge the images of a chunk and leave its files; returns the number of images.

    Raises:
        Failed: an archive cannot be read, which is no fault of one image.
    """
    population = open_population(chunk.path, chunk.key)
    reader = Reader(population.containers)
    try:
        return _judge_rows(chunk, population, reader)
    finally:
        reader.close()


@functools.lru_cache(maxsize=1)
def open_population(path: Path, key: str) -> Population:
    """Open a population once for all chunks of a process; another one has another `key`."""
    del key
    return Population(path)


def file_of(stem: Path, suffix: str) -> Path:
    """Return one of the files of a chunk: npy, bin or json."""
    return stem.with_name(f"{stem.name}.{suffix}")


def read_chunk(stem: Path, key: str) -> np.ndarray | None:
    """Return the verdicts of a chunk that is finished and whole, else None."""
    saved = read_json(file_of(stem, "json"))
    if not isinstance(saved, dict) or saved.get("key") != key:
        return None
    try:
        raw = file_of(stem, "npy").read_bytes()
        spooled = file_of(stem, "bin").stat().st_size if saved["spooled"] else 0
    except FileNotFoundError:
        return None
    if google_crc32c.value(raw) != saved["crc32c"] or spooled != saved["spooled"]:
        return None
    return np.load(io.BytesIO(raw), allow_pickle=False)


def read_notes(stem: Path) -> list[tuple[int, str, str]]:
    """Return (row, kind, reason) of what is to be said of a finished chunk's images."""
    saved = read_json(file_of(stem, "json"))
    assert isinstance(saved, dict), f"{stem}: read before its chunk was finished"
    return [(row, kind, reason) for row, kind, reason in saved["notes"]]


def _judge_rows(chunk: Chunk, population: Population, reader: Reader) -> int:
    verdicts = np.zeros(chunk.end - chunk.start, VERDICT)
    notes: list[tuple[int, str, str]] = []
    spooled = 0
    file_of(chunk.stem, "json").unlink(missing_ok=True)
    with file_of(chunk.stem, "bin").open("wb") as spool:
        for row in range(chunk.start, chunk.end):
            data, found = _judge(population, reader, row, chunk.rules)
            notes += [(row, kind, reason[:_MAX_REASON]) for kind, reason in found.notes]
            where = NOWHERE
            if found.state != REJECTED and found.stored != data:
                where, spooled = spooled, spooled + spool.write(found.stored)
            verdicts[row - chunk.start] = _measure(found, where, chunk.rules.hashes)
        spool.flush()
        if spooled:  # what is encoded is not looked at again before it is written to a shard
            os.fsync(spool.fileno())
    if not spooled:
        file_of(chunk.stem, "bin").unlink()
    _seal(chunk, verdicts, notes, spooled)
    return len(verdicts)


def _judge(population: Population, reader: Reader, row: int, rules: Rules) -> tuple[bytes, Verdict]:
    """Return the source's bytes of an image, and the verdict on what is to be stored."""
    place = population.place(row)
    if place.size > MAX_IMAGE_BYTES:
        return b"", _reject("too large", f"{place.size} bytes, over {MAX_IMAGE_BYTES}")
    try:
        data = reader.read(place)
    except OSError as error:
        _check_container(population, place, error)
        return b"", _reject("cannot be read", f"cannot be read: {error.strerror}")
    if len(data) != place.size:
        reason = f"{len(data)} of {place.size} bytes are left; the source was cut or changed"
        return b"", _reject("cannot be read", reason)
    pixels = PIXELS[int(population.rows["pixels"][row])]
    found = check_pixels(data, pixels) if pixels else check(data, rules.clean)
    return data, found if found.state == REJECTED else _transcode(found, rules.transcode)


def _transcode(found: Verdict, spec: TranscodeSpec) -> Verdict:
    try:
        return transcode(found, spec)
    except (Misuse, MemoryError):
        raise
    except Exception as error:  # an image that only its header was looked at may be any bytes
        kind = type(error).__name__
        return _reject("cannot be decoded", f"cannot be transcoded ({kind}); see --check full")


def _check_container(population: Population, place: Place, error: OSError) -> None:
    """Let a single file of a folder be missing; an archive or a disk that fails ends the pass."""
    folder = Path(population.containers[place.container]["path"])
    if folder.is_dir() and error.errno in _MAY_BE_MISSING:
        return
    raise Failed(
        f"{folder}: '{printable(place.name)}' cannot be read: {error.strerror}; see that the "
        "source is in its place and its disk healthy, then run the same command again"
    ) from None


def _reject(kind: str, reason: str) -> Verdict:
    notes = ((kind, reason),)
    return Verdict(state=REJECTED, notes=notes, width=0, height=0, stored=b"", suffix="jpg")


def _measure(found: Verdict, where: int, hashes: bool) -> tuple[int, ...]:
    """Return the VERDICT of an image whose bytes lie at `where` in the spool."""
    if found.state == REJECTED:
        return (REJECTED, 0, 0, 0, 0, 0, 0, NOWHERE, 0)
    stored = found.stored
    twin = int.from_bytes(hashlib.sha256(stored).digest()[:8], "big")
    measures = len(stored), google_crc32c.value(stored), twin
    what = found.state, SUFFIXES.index(found.suffix), found.width, found.height
    return (*what, *measures, where, _hash(stored, twin) if hashes else 0)


def _hash(stored: bytes, otherwise: int) -> int:
    """Return the perceptual hash; `otherwise` for what only the strict decoder can read.

    Half a digest is as good as random, so such an image is near no other one.
    """
    try:
        return phash(stored)
    except MemoryError:
        raise
    except Exception:  # whatever Pillow raises on odd bytes
        return otherwise


def _seal(
    chunk: Chunk, verdicts: np.ndarray, notes: list[tuple[int, str, str]], spooled: int
) -> None:
    """Write the verdicts, then the file that vouches for them: no order of syncs is needed."""
    buffer = io.BytesIO()
    np.save(buffer, verdicts, allow_pickle=False)
    raw = buffer.getvalue()
    file_of(chunk.stem, "npy").write_bytes(raw)
    values = {
        "key": chunk.key,
        "crc32c": google_crc32c.value(raw),
        "spooled": spooled,
        "notes": notes,
    }
    file_of(chunk.stem, "json").write_text(json.dumps(values), encoding="ascii")
