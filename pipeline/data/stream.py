"""Training batches from plain WebDataset tars that have no index, read through webdataset.

Same batches, fewer promises than `loader`: shards are dealt out whole to workers, so ids and order
change with ranks and workers; samples pass about once per epoch, not exactly once; a resume starts
a fresh shuffle instead of going on; nothing is checksummed; `ids` are hashes of the keys. Give such
tars an index with `python -m data_prep index` to get the rest. What holds: batches depend on
(seed, first step, ranks, workers) alone, and broken tars and images are errors that name file and
key; under `loader.bad.policy: budget` the next sample stands in for a broken image (never for a
broken tar: how much is lost in it is not known).

Only local files are opened (by us: no URLs, no pipes), only the members named below are read, and
nothing but our own decoder touches them.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tarfile import TarError
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from torch import Tensor

os.environ["WDS_SECURE"] = "1"  # before the import: by default its input may run code
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.data.augment import AugmentSpec
from pipeline.data.bad import ATTEMPTS, Replaced
from pipeline.data.batches import MicroBatch, Share, Steps, Ticket
from pipeline.data.decode import BrokenImage
from pipeline.data.index import IMAGE_SUFFIXES
from pipeline.data.labels import LabelSpace
from pipeline.data.loader import StepLoader
from pipeline.data.loading import LoaderSpec
from pipeline.data.reader import BrokenSample
from pipeline.data.ring import Shape
from pipeline.data.rows import Part, Rows, empty_part, micro_batch
from pipeline.data.worker import Piece
from pipeline.plan.draws import Stream, keyed
from pipeline.spec import Misuse

MEMBERS = (*IMAGE_SUFFIXES, "cls", "json")
"""What is read of a tar, by the part of a member's name after its first dot."""
LABEL_FIELDS = ("classes", "synsets", "labels", "label", "cls")
"""Where a sample's json may hold its labels, class names or indices; the first one counts."""


class StreamLoader(StepLoader):
    """Training batches of tars without an index; used like `TrainLoader`."""

    def __init__(
        self,
        shards: Sequence[Path | str],
        labels: LabelSpace,
        plan: Steps,
        global_batch: int,
        rank: int,
        world: int,
        augment: AugmentSpec,
        seed: int,
        spec: LoaderSpec,
        shuffle_buffer: int = 1000,
    ) -> None:
        """Check the shards; Misuse where one is no local file or there are too few of them."""
        parts = world * max(1, spec.workers)
        if len(shards) < parts:
            raise Misuse(
                f"data.stream names {len(shards)} shards for {world} ranks with {spec.workers} "
                "workers: each needs a shard of its own; lower loader.workers or index the tars "
                "(data_prep index)"
            )
        job = MakeFromStream(
            tuple(map(_local_file, shards)),
            labels,
            Rows(augment, spec.decode),
            seed,
            Share(global_batch, rank, world, spec.lanes),
            spec,
            shuffle_buffer,
        )
        super().__init__(job, plan, job.share, spec)


class Sample(NamedTuple):
    """One sample of a tar; `number` counts the passes over this part of the shards."""

    shard: str
    key: str
    image: bytes
    labels: tuple[int, ...]
    number: int


class MakeFromStream:
    """The job of a worker: fills each ticket with the next samples of the worker's shards.

    The workers get whole tickets in turn, so that their number alone decides what is in a batch.
    """

    piece_images = 0

    def __init__(
        self,
        shards: tuple[Path, ...],
        labels: LabelSpace,
        rows: Rows,
        seed: int,
        share: Share,
        spec: LoaderSpec,
        shuffle_buffer: int,
    ) -> None:
        self.share, self._bad = share, spec.bad
        self._shards, self._labels, self._rows = shards, labels, rows
        self._seed, self._shuffle_buffer = seed, shuffle_buffer
        self._workers = max(1, spec.workers)
        self._stream: tuple[int, Iterator[Sample]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}

    def shape(self, ticket: Ticket) -> Shape:
        """Return the shape of a micro-batch's images."""
        return self.share.global_batch // ticket.micro_batches, *self._rows.shape(ticket.px)

    def make(self, ticket: Ticket, piece: Piece, out: np.ndarray) -> Part:
        """Write the next images of the shards of worker `piece.worker`."""
        if self._stream is None or self._stream[0] != ticket.first_step:
            self._stream = ticket.first_step, self._samples(ticket.first_step, piece.worker)
        part = empty_part()
        for row in out:
            broken: list[tuple[int, BrokenSample]] = []
            while not self._fill(row, ticket, sample := next(self._stream[1]), part, broken):
                if self._bad.policy == "strict" or len(broken) > ATTEMPTS:
                    raise broken[0][1]
            by = f"{sample.key!r} of {sample.shard}"  # its id is a hash, which says nothing
            part.replaced.extend(Replaced(i, by, str(error)) for i, error in broken)
        return part

    def _fill(
        self,
        row: np.ndarray,
        ticket: Ticket,
        sample: Sample,
        part: Part,
        broken: list[tuple[int, BrokenSample]],
    ) -> bool:
        """Write a sample's row and note it in `part`; else note the error and return False."""
        sample_id = key_id(sample.key)
        rng = keyed(Stream.AUGMENT, self._seed, sample.number, sample_id)
        try:
            ops = self._rows.fill(sample.image, ticket.px, ticket.magnitude, rng, row)
        except BrokenImage as error:
            broken.append((sample_id, _broken(sample.shard, sample.key, str(error))))
            return False
        part.add(sample_id, sample.labels, ops)
        return True

    def finish(self, ticket: Ticket, images: Tensor, parts: Sequence[Part]) -> MicroBatch:
        """Put the micro-batch together."""
        return micro_batch(ticket, images, parts)

    def _samples(self, first_step: int, worker: int) -> Iterator[Sample]:
        """Yield a worker's samples without end, through a shuffle buffer."""
        part = self.share.rank * self._workers + worker
        own = self._shards[part :: self.share.world * self._workers]
        rng = keyed(Stream.ORDER, self._seed, first_step, part)
        waiting: list[Sample] = []
        for sample in self._passes(own, rng):
            waiting.append(sample)
            if len(waiting) > self._shuffle_buffer:
                chosen = int(rng.integers(len(waiting)))
                waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
                yield waiting.pop()

    def _passes(self, shards: tuple[Path, ...], rng: np.random.Generator) -> Iterator[Sample]:
        number = 0
        while True:
            found = False
            for chosen in rng.permutation(len(shards)):
                for sample in read_tar(shards[chosen], self._labels):
                    found = True
                    yield sample._replace(number=number)
            if not found:
                raise BrokenSample(f"{shards[0]} and the shards beside it hold no samples at all")
            number += 1


def find_tars(pattern: str) -> list[Path]:
    """Return the tars that the recipe's data.stream names, sorted; Misuse where there are none."""
    path = Path(pattern).absolute()
    tars = sorted(path.parent.glob(path.name))
    if not tars:
        raise Misuse(
            f"data.stream is '{pattern}': 0 shards fit this pattern; correct it (the part after "
            "the last slash may hold wildcards, as in /data/tars/*.tar)"
        )
    return tars


def read_tar(shard: Path, labels: LabelSpace) -> Iterator[Sample]:
    """Yield the samples of one tar in its order.

    Raises:
        BrokenSample: the tar is missing, truncated or no tar, or a sample lacks image or label.
    """
    try:
        with shard.open("rb") as file:
            _check_end(shard, file)
            source = [{"url": str(shard), "stream": file}]
            members = tar_file_expander(source, select_files=_is_wanted)
            for fields in group_by_keys(members):
                yield _sample(shard, fields, labels)
    except (OSError, EOFError, TarError) as error:
        what = getattr(error, "strerror", None) or (*error.args, "it ends too early")[0]
        raise _broken(str(shard), None, f"not a whole tar ({what})") from None
    except ValueError as error:
        if isinstance(error, BrokenSample):
            raise
        raise _broken(str(shard), None, str(error.args[0])) from None


def key_id(key: str) -> int:
    """Return a stable 63-bit id of a sample's key."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _check_end(shard: Path, file: BinaryIO) -> None:
    """Refuse a plain tar without its closing zeros: tarfile takes most cuts for the end."""
    plain = file.read(512)[257:262] == b"ustar"
    file.seek(max(0, file.seek(0, os.SEEK_END) - 512))
    if plain and any(file.read()):
        raise _broken(str(shard), None, "not a whole tar (no end marker: it is truncated)")
    file.seek(0)


def _sample(shard: Path, fields: dict[str, Any], labels: LabelSpace) -> Sample:
    key = fields["__key__"]
    image = next((fields[suffix] for suffix in IMAGE_SUFFIXES if suffix in fields), None)
    if image is None or not ("cls" in fields or "json" in fields):
        there = ", ".join(sorted(name for name in fields if not name.startswith("__")))
        reason = f"has only {there}; it needs an image and a label, next to each other in the tar"
        raise _broken(str(shard), key, reason)
    return Sample(str(shard), key, image, _classes(shard, key, fields, labels), 0)


def _classes(shard: Path, key: str, fields: dict[str, Any], labels: LabelSpace) -> tuple[int, ...]:
    """Return class indices: from `json` where it lists any, else the one in `cls`."""
    try:
        found = _in_json(fields["json"]) if "json" in fields else []
        return tuple(
            _class_index(value, labels) for value in found or [fields["cls"].decode().strip()]
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _broken(str(shard), key, f"has no label that can be read ({error})") from None


def _in_json(raw: bytes) -> list[Any]:
    """Return the labels of a sample's json: the list itself, or the first field with one."""
    values = json.loads(raw)
    if isinstance(values, dict):
        values = next((values[name] for name in LABEL_FIELDS if values.get(name)), [])
    return values if isinstance(values, list) else [values]


def _class_index(value: Any, labels: LabelSpace) -> int:
    """Return the index of a class given as a name or as an index."""
    if isinstance(value, str) and not value.lstrip("-").isdecimal():
        return labels.index(value)
    if isinstance(value, bool) or not 0 <= (number := int(value)) < len(labels):
        raise ValueError(f"class {value}, but there are {len(labels)} classes")
    return number


def _is_wanted(name: str) -> bool:
    return name.rpartition("/")[2].partition(".")[2].lower() in MEMBERS


def _local_file(shard: Path | str) -> Path:
    text = str(shard)
    if not isinstance(shard, Path) and ("://" in text or text.startswith(("pipe:", "-"))):
        raise Misuse(f"shard '{text}': only local tar files are streamed; copy it here first")
    if not Path(shard).is_file():
        raise Misuse(f"shard '{text}': no such file; correct the path or restore the shard")
    return Path(shard)


def _broken(shard: str, key: str | None, reason: str) -> BrokenSample:
    sample = f" sample {key!r}:" if key is not None else ""
    return BrokenSample(f"{shard}:{sample} {reason}; restore the tar or write it again")
