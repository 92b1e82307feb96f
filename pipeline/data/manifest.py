"""The manifest of a folder of shards: what is in it, how it came about, and its digests.

    DIR/manifest.json                  this file, written last: a folder without it is no data set
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
from pipeline.run.files import write_json
from pipeline.spec import Misuse, Spec

FILE = "manifest.json"
MAX_NOTES = 1000
"""So many rejects and repairs are listed in the manifest itself; rejects.jsonl has them all."""

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
    """How the eval split was made: a stratified fraction, folders or a source of its own."""

    rule: Literal["none", "fraction", "folders", "source", "unknown"]
    fraction: float = 0.0


class Note(Spec):
    """What happened to one image: `file` as the source calls it, and why."""

    file: str
    reason: str


class Notes(Spec):
    """Images that were rejected or repaired: all counted by reason, the first ones listed."""

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

    format: Literal[1] = 1
    name: str
    tool: str
    sources: tuple[str, ...] = ()
    seed: int = 0
    holdout: Holdout
    labels: LabelSpace
    splits: dict[str, Split]
    rejected: Notes = Notes()
    repaired: Notes = Notes()
    merged_duplicates: int = 0
    eval_twins: int = 0
    """Images of the eval split with a byte-identical twin in train."""

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
    write_json(folder / FILE, {"digest": manifest.digest(), **manifest.model_dump(mode="json")})


def load_manifest(folder: Path) -> Manifest:
    """Read and check `DIR/manifest.json`.

    Raises:
        Misuse: the folder or the manifest is missing, broken, or does not match its own digest.
    """
    path = Path(folder) / FILE
    values = _read(path)
    digest = values.pop("digest", None)
    if values.get("format") != 1:
        raise Misuse(
            f"{path}: field 'format' is {values.get('format')!r}; this version reads format 1: "
            "build the shards again or use the version that wrote them"
        )
    manifest = Manifest.parse(values, str(path))
    if manifest.digest() != digest:
        raise Misuse(
            f"{path}: field 'digest' is {digest!r}, but the content has {manifest.digest()}; "
            "the file was changed after it was written: restore it or build the shards again"
        )
    return manifest


def _read(path: Path) -> dict[str, object]:
    if not path.parent.is_dir():
        raise Misuse(
            f"{path.parent}: no such folder of shards; make it with "
            f"`python -m data_prep build SOURCE {path.parent}`, or correct `data=`"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Misuse(
            f"{path}: missing, so {path.parent} is no finished set of shards; finish it with "
            "`python -m data_prep build`, or give tars made by others a manifest with "
            f"`python -m data_prep index {path.parent}`"
        ) from None
    except (OSError, ValueError) as error:
        raise Misuse(f"{path}: cannot be read: {error}; build the shards again") from None
    if not isinstance(values, dict):
        raise Misuse(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values
