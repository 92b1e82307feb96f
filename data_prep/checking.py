"""First pass: every image judged once, by chunks, over processes and hosts; then read as one.

A chunk of rows is one task (data_prep.judging). An interrupted pass goes on where it stopped;
array element k of K takes chunks k, k + K, ...
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import google_crc32c
import numpy as np

from data_prep.catalogue import Catalogue, Reader
from data_prep.columns import is_finished
from data_prep.failure import Failed, naming_full_disk
from data_prep.judging import (
    NOWHERE,
    VERDICT,
    Chunk,
    Rules,
    file_of,
    judge_chunk,
    open_population,
    read_chunk,
    read_notes,
)
from data_prep.options import TOOL, BuildSpec
from data_prep.pool import Progress, run
from data_prep.population import Population
from data_prep.transcode import check_encoder
from pipeline.run.files import read_json, write_json
from pipeline.spec import Misuse, canonical_json

_MAX_OPEN = 64


class RowNote(NamedTuple):
    """What is to be said of an image: why it was rejected or repaired, or what is odd about it."""

    row: int
    kind: str
    reason: str


class Checked:
    """The verdicts on a population, memory-mapped, and the bytes that the pass wrote itself."""

    def __init__(self, work: Path, key: str) -> None:
        self.work = work
        self.key = key
        """Changes when a source does, or a choice that verdicts follow from."""
        self.verdicts = np.load(work / "verdicts.npy", mmap_mode="r").view(np.ndarray)
        """(N,) VERDICT, a row for each of the population."""
        self._chunk_rows = chunk_rows(len(self.verdicts))
        self._open: dict[int, BinaryIO] = {}

    def notes(self) -> Iterator[RowNote]:
        """Yield all notes in the order of rows; one chunk of them is in memory at a time."""
        for number in range(num_chunks(len(self.verdicts))):
            yield from (RowNote(*note) for note in read_notes(_stem(self.work, number)))

    def spooled(self, row: int) -> bytes:
        """Return the stored bytes of a row that the source itself does not have.

        Raises:
            Failed: they are not as they were written.
        """
        number = row // self._chunk_rows
        if number not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self.close()
            self._open[number] = file_of(_stem(self.work, number), "bin").open("rb")
        file, verdict = self._open[number], self.verdicts[row]
        file.seek(int(verdict["spool"]))
        data = file.read(int(verdict["size"]))
        if google_crc32c.value(data) != int(verdict["crc32c"]):
            raise Failed(
                f"{file.name}: damaged since it was written (row {row}); see that the disk is "
                "healthy, remove this file and run the same command again"
            )
        return data

    def close(self) -> None:
        """Close the files of the spools."""
        while self._open:
            self._open.popitem()[1].close()


def chunk_rows(num_rows: int) -> int:
    """Return the rows of a chunk: a few thousand chunks at most, each some seconds of work."""
    return min(max(num_rows // 2000, 32), 4096)


def num_chunks(num_rows: int) -> int:
    """Return the number of chunks of a population."""
    return -(-num_rows // chunk_rows(num_rows))


def check_chunks(
    population: Population,
    spec: BuildSpec,
    work: Path,
    workers: int,
    element: tuple[int, int] = (0, 1),
) -> None:
    """Judge the images of chunks k, k + K, ... of element (k, K), but for finished chunks.

    Raises:
        Misuse: this installation cannot transcode as asked.
        Failed: a worker died, the disk is full, or an archive cannot be read.
    """
    check_encoder(spec.transcode)
    key = key_of(population, spec, work)
    (work / "check").mkdir(parents=True, exist_ok=True)
    first, step = element
    mine = range(first, num_chunks(len(population)), step)
    missing = [number for number in mine if read_chunk(_stem(work, number), key) is None]
    rules = Rules(spec.clean, spec.transcode, spec.near_duplicates > 0)
    chunks = [_chunk(population, number, key, work, rules) for number in missing]
    total = sum(chunk.end - chunk.start for chunk in chunks)
    if len(missing) < len(mine):
        print(f"{len(mine) - len(missing)} of {len(mine)} chunks were checked before and kept")
    with (
        naming_full_disk(work, _most_bytes(population, chunks)),
        Progress("check", "images", total) as progress,
    ):
        try:
            for count in run(judge_chunk, chunks, workers):
                progress.add(count)
        finally:
            open_population.cache_clear()  # a file that is mapped cannot be removed everywhere


def load_checked(population: Population, work: Path) -> Checked:
    """Open the verdicts on all images; put the chunks into one file where that is not done yet.

    Quick once it is done, so that every process of a later stage may call it.

    Raises:
        Misuse: a chunk is not checked yet, or was checked with other inputs or options.
    """
    first = read_json(file_of(_stem(work, 0), "json"))
    key = first["key"] if isinstance(first, dict) else ""
    about = {"key": key, "rows": len(population)}
    if read_json(work / "verdicts.json") != about or not _is_whole(work, len(population)):
        _gather(len(population), key, work)
        write_json(work / "verdicts.json", about)
    return Checked(work, key)


def key_of(population: Population, spec: BuildSpec, work: Path) -> str:
    """Return the digest of what verdicts follow from: the sources, the choices and the tool."""
    hashes = spec.near_duplicates > 0
    rules = [TOOL, spec.clean.digest(), spec.transcode.digest(), hashes, population.containers]
    state = hashlib.sha256(canonical_json(rules).encode())
    if is_finished(work / "catalogue"):
        state.update(Catalogue(work / "catalogue").fingerprint.encode())
    for suffix in ("rows", "names"):
        with population.path.with_name(f"{population.path.name}.{suffix}").open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return state.hexdigest()


def stored(reader: Reader, population: Population, checked: Checked, row: int) -> bytes:
    """Return the bytes of an image as they go into a shard; `reader` is of the population.

    Reading rows in ascending order spares the disk. The caller compares the crc32c.

    Raises:
        Failed: the spool is damaged.
        OSError: the source or the spool cannot be read.
    """
    if int(checked.verdicts["spool"][row]) != NOWHERE:
        return checked.spooled(row)
    return reader.read(population.place(row))


def _is_whole(work: Path, num_rows: int) -> bool:
    """Tell whether the gathered verdicts are as long as they were: a scratch gets swept."""
    try:
        return len(np.load(work / "verdicts.npy", mmap_mode="r")) == num_rows
    except (OSError, ValueError, EOFError):
        return False


def _gather(num_rows: int, key: str, work: Path) -> None:
    temporary = work / "verdicts.tmp.npy"
    (work / "verdicts.json").unlink(missing_ok=True)
    verdicts = np.lib.format.open_memmap(temporary, "w+", VERDICT, (num_rows,))
    rows = chunk_rows(num_rows)
    for number in range(num_chunks(num_rows)):
        found = read_chunk(_stem(work, number), key)
        if found is None:
            raise Misuse(
                f"{_stem(work, number)}: chunk {number} of {num_chunks(num_rows)} is not checked "
                f"yet; run stage check again (element k of K takes chunks k, k + K, ...)"
            )
        verdicts[number * rows : number * rows + len(found)] = found
    verdicts.flush()
    temporary.replace(work / "verdicts.npy")


def _stem(work: Path, number: int) -> Path:
    return work / "check" / f"{number:06d}"


def _chunk(population: Population, number: int, key: str, work: Path, rules: Rules) -> Chunk:
    rows = chunk_rows(len(population))
    end = min((number + 1) * rows, len(population))
    return Chunk(population.path, number * rows, end, key, _stem(work, number), rules)


def _most_bytes(population: Population, chunks: list[Chunk]) -> int:
    """Return what the spools of these chunks take if every image has to be stored anew."""
    sizes = population.rows["size"]
    return sum(int(sizes[chunk.start : chunk.end].sum(dtype=np.int64)) for chunk in chunks)
