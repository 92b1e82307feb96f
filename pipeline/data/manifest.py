"""The manifest of a folder of shards: what is in it, how it came about, and its digests.

    DIR/manifest.json                  this file, written last: a folder without it is no data set
    DIR/rejects.jsonl, DIR/_info.json  every image with a reason; the shards for timm's reader
    DIR/train/shard-000000.tar         samples key.jpg, key.cls (and key.json), globally permuted
    DIR/train/shard-000000.idx.npy     index: where each image lies, see pipeline.data.index
    DIR/train/shard-000000.lab.npy     labels of the samples, flat

Nothing in a manifest depends on when, where or with how many workers it was made.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from pipeline.data.labels import LabelSpace
from pipeline.run.files import write_atomically
from pipeline.spec import Misuse, Spec

FILE = "manifest.json"
REJECTS = "rejects.jsonl"
"""Every image that was rejected, dropped, repaired or noted, one JSON object a line."""
INFO = "_info.json"
"""The shards in the words of timm's webdataset reader."""
FORMAT = 2
MAX_NOTES = 1000
"""So many images of each kind are listed in the manifest itself; rejects.jsonl has them all."""

Setting = bool | int | float | str | None

SPLIT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$"
"""What a split may be called: it is a folder's name, and the start of a shard's path."""
_PART = re.compile(r"[\w][\w.+=-]*", re.ASCII)


class Shard(Spec):
    """One tar and its index; `file` is relative to the folder of the manifest."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str
    index_sha256: str
    labels_sha256: str

    @field_validator("file")
    @classmethod
    def _check_file(cls, file: str) -> str:
        if not file.endswith(".tar") or not all(map(_PART.fullmatch, file.split("/"))):
            raise ValueError("expected a relative path of plain names that ends in .tar")
        return file

    @property
    def index_file(self) -> str:
        """Return the path of the index, relative to the folder."""
        return self.file.removesuffix(".tar") + ".idx.npy"

    @property
    def labels_file(self) -> str:
        """Return the path of the flat labels, relative to the folder."""
        return self.file.removesuffix(".tar") + ".lab.npy"


class Split(Spec):
    """A list of shards in order; sample ids count through them."""

    shards: tuple[Shard, ...]
    class_counts: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)


class Holdout(Spec):
    """How a split beside train was made."""

    rule: Literal["none", "fraction", "count", "first", "folders", "source", "official", "unknown"]
    """Drawn from train: a fraction, a count per class, the first of each class by name. Else as
    folders of the source, a source of its own, the official lists, or tars of unknown making."""
    value: float = 0.0
    """The fraction, or images per class."""
    seed: int = 0
    """Of the draw, where there was one."""


class Note(Spec):
    """What happened to one image: `file` as the source calls it, and why."""

    file: str
    reason: str


class Notes(Spec):
    """Images of one fate: all counted by kind of reason, the first ones listed."""

    by_reason: dict[str, int] = {}
    first: tuple[Note, ...] = ()

    @classmethod
    def of(cls, notes: Iterable[tuple[str, str, str]]) -> "Notes":
        """Count and list (file, kind of reason, reason in full), in the order given."""
        counts: dict[str, int] = {}
        first: list[Note] = []
        for file, kind, reason in notes:
            counts[kind] = counts.get(kind, 0) + 1
            if len(first) < MAX_NOTES:
                first.append(Note(file=file, reason=reason))
        return cls(by_reason=dict(sorted(counts.items())), first=tuple(first))

    @property
    def count(self) -> int:
        return sum(self.by_reason.values())


class Manifest(Spec):
    """What a folder of shards holds."""

    format: Literal[2] = FORMAT
    name: str
    tool: str
    sources: tuple[str, ...] = ()
    layout: str = ""
    """How the sources were read (data_prep.layouts); empty: tars made by others."""
    seed: int = 0
    holdouts: dict[str, Holdout] = {}
    """Split -> how it was made, for all splits but train."""
    clean: dict[str, Setting] = {}
    """The rules for images: check in full or by header, EXIF orientation, smallest side, ..."""
    transcode: dict[str, Setting] = {}
    """What was done to good JPEGs; `kind` none means that they are stored byte for byte."""
    against: tuple[str, ...] = ()
    """Digests of the data sets whose images were left out."""
    labels: LabelSpace
    splits: dict[str, Split]
    rejected: Notes = Notes()
    """Files that are no usable image."""
    repaired: Notes = Notes()
    """Images that were stored in another way than they came, transcoding aside."""
    noted: Notes = Notes()
    """Images that are odd but stored as they are."""
    dropped: Notes = Notes()
    """Good images that were left out or merged: duplicates, leaks, images of other sets."""
    merged_duplicates: int = 0
    leaks: int = 0
    """Train images that were dropped because a held-out split has them."""
    eval_twins: int = 0
    """Images of the eval split with a byte-identical twin in train."""
    bytes_before: int = 0
    """Bytes of the images of all splits in the sources; 0 where nobody knows."""
    bytes_after: int = 0
    """Bytes of the same images as stored."""
    interleaved: bool = False
    """Whether a sample's members may lie apart (tars of others): webdataset would drop these."""
    rejects_sha256: str = ""
    """Of rejects.jsonl; empty: there is none."""
    info_sha256: str = ""
    """Of _info.json; empty: there is none of ours."""

    @model_validator(mode="after")
    def _check_splits(self) -> "Manifest":
        for name, split in self.splits.items():
            if not _PART.fullmatch(name):
                raise ValueError(f"split name {name!r}: use letters, digits, '-' and '_'")
            if len(split.class_counts) != len(self.labels):
                raise ValueError(
                    f"split '{name}' counts {len(split.class_counts)} classes, "
                    f"the label space has {len(self.labels)}"
                )
        return self

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    def split(self, name: str) -> Split:
        """Return a split; Misuse names those that there are."""
        if name not in self.splits:
            raise Misuse(
                f"data set '{self.name}' has no split '{name}'; it has: {', '.join(self.splits)}"
            )
        return self.splits[name]


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `DIR/manifest.json` with its digest, atomically."""
    write_atomically(folder / FILE, _text(manifest))


def load_manifest(folder: Path) -> Manifest:
    """Read and check `DIR/manifest.json`; one flipped bit anywhere in it is found.

    Raises:
        Misuse: the folder or the manifest is missing, broken, or does not match its own digest.
        Failure: the disk returns errors.
    """
    path = Path(folder) / FILE
    raw = _read(path)
    values = _parse(path, raw)
    digest = values.pop("digest", None)
    if values.get("format") != FORMAT:
        raise Misuse(
            f"{path}: field 'format' is {values.get('format')!r}; this version reads format "
            f"{FORMAT}: build the shards again or use the version that wrote them"
        )
    manifest = Manifest.parse(values, str(path))
    if manifest.digest() != digest:
        raise Misuse(
            f"{path}: field 'digest' is {digest!r}, but the content has {manifest.digest()}; "
            "the file was changed after it was written: restore it or build the shards again"
        )
    if raw != _text(manifest).encode():
        raise Misuse(
            f"{path}: says the same as when it was written, but in other bytes; it was edited or "
            "damaged: restore it or build the shards again"
        )
    return manifest


def _text(manifest: Manifest) -> str:
    """Return the one form that a manifest has on disk."""
    values = {"digest": manifest.digest(), **manifest.model_dump(mode="json")}
    return json.dumps(values, indent=2) + "\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except OSError as error:
        from pipeline.data.index_files import DISK_ERRORS, disk_error  # numpy comes with it

        if error.errno in DISK_ERRORS:
            raise disk_error(path, error) from None
        raise Misuse(
            f"{path}: cannot be read ({error.strerror}); see that it is a file and that this user "
            "may read it"
        ) from None


def _missing(path: Path) -> Misuse:
    if not path.parent.is_dir():
        return Misuse(
            f"{path.parent}: no such folder of shards; make it with "
            f"`python -m data_prep build SOURCE {path.parent}`, or correct `data=`"
        )
    return Misuse(
        f"{path}: missing, so {path.parent} is no finished set of shards; finish it with "
        "`python -m data_prep build`, or give tars made by others a manifest with "
        f"`python -m data_prep index {path.parent}`"
    )


def _parse(path: Path, raw: bytes) -> dict[str, object]:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Misuse(f"{path}: cannot be read: {error}; build the shards again") from None
    if not isinstance(values, dict):
        raise Misuse(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values
