"""What a person asks `build` for: every choice that changes the shards, and none that does not."""

from pathlib import Path
from typing import Annotated, Literal, Self

import PIL
from pydantic import Field, StringConstraints, field_validator, model_validator

from data_prep.clean import CleanRules
from data_prep.population import EVAL, TRAIN
from data_prep.transcode import ENCODER, TranscodeSpec
from pipeline.data.manifest import SPLIT_NAME, Manifest, load_manifest
from pipeline.spec import Misuse, Spec

TOOL = ", ".join(dict.fromkeys(("data_prep 2", f"Pillow {PIL.__version__}", ENCODER)))
"""What wrote the shards; repaired and transcoded images depend on the encoders."""
MAX_NEAR_BITS = 7
"""The search for near duplicates is exact up to this Hamming distance of 64-bit hashes."""


SplitName = Annotated[str, StringConstraints(pattern=SPLIT_NAME)]


class Hold(Spec):
    """How many train images a split takes: a fraction, `count` per class, or the `first` by name.

    Whatever the rule, a class with images keeps at least one of them for train.
    """

    fraction: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Of all images, and of each class within one image."""
    count: int | None = Field(default=None, ge=1)
    """So many of each class, drawn by seed."""
    first: int | None = Field(default=None, ge=1)
    """So many of each class, by file name (ImageNet-21K-P takes the first 50)."""

    @model_validator(mode="after")
    def _check_one_rule(self) -> Self:
        if sum(value is not None for value in (self.fraction, self.count, self.first)) != 1:
            raise ValueError("give one of fraction, count and first")
        return self

    @classmethod
    def read(cls, text: str, source: str = "--holdout") -> Self:
        """Read `0.2` (fraction), `25` (count per class) or `first:50`; Misuse on anything else."""
        head, colon, number = text.rpartition(":")
        if head == "first" and number.isdecimal():
            return cls.parse({"first": int(number)}, source)
        if not colon and number.isdecimal() and number.isascii() and int(number) > 0:
            return cls.parse({"count": int(number)}, source)
        try:
            return cls.parse({"fraction": float(text)}, source)
        except ValueError as error:
            if isinstance(error, Misuse):
                raise
            raise Misuse(
                f"{source}: '{text}' is no rule; give a fraction (0.2), a count per class (25) or "
                "first:50 for the first by name"
            ) from None


class Against(Spec):
    """Splits of another data set, whose images are not to be in this one."""

    folder: str
    manifest: str
    """The digest of its manifest: another set at the same place is another choice."""
    splits: tuple[str, ...] = Field(min_length=1)

    @classmethod
    def read(cls, text: str) -> Self:
        """Read `DIR` (its eval split, or all where there is none) or `DIR:SPLIT,SPLIT`.

        Raises:
            Misuse: there is no data set in DIR, or it has no such split.
        """
        place, colon, names = text.rpartition(":")
        if not colon or Path(text).is_dir():
            place, names = text, ""
        manifest = load_manifest(Path(place))
        splits = tuple(names.split(",")) if names else _held_out(manifest)
        for split in splits:
            manifest.split(split)
        return cls(folder=str(Path(place).resolve()), manifest=manifest.digest(), splits=splits)


def _held_out(manifest: Manifest) -> tuple[str, ...]:
    """Return what must stay unseen: a set's eval split; all of one that has none."""
    return (EVAL,) if EVAL in manifest.splits else tuple(manifest.splits)


class BuildSpec(Spec):
    """The choices of one build. Two builds with equal specs and inputs give equal bytes."""

    name: str = Field(pattern=r"^[\w][\w.+-]*$")
    layout: str = "folders"
    splits: dict[str, SplitName] | None = None
    """Folder -> split; None finds folders named train and test, {} takes none for a split."""
    eval_labels: dict[str, str] | None = None
    """File -> class, for images to evaluate on that lie in no class folder."""
    classes: tuple[str, ...] = ()
    label_space: str = ""
    """A published list (pipeline.data.labels); empty: derived from the sources."""
    names: dict[str, str] | None = None
    per_class: int | None = Field(default=None, ge=1)
    shard_mb: float = Field(default=256.0, gt=0.0, le=1e6)
    shard_samples: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    allow_empty: bool = False
    duplicates: Literal["keep", "merge", "drop"] = "keep"
    """Byte-identical files: keep all, one sample with all labels, or only the first."""
    against: tuple[Against, ...] = ()
    near_duplicates: int = Field(default=0, ge=0, le=MAX_NEAR_BITS)
    """Hamming distance of perceptual hashes up to which images are near; 0 does not look.

    Near images are noted; with `duplicates` merge or drop, only the first is kept.
    """
    holdouts: dict[SplitName, Hold] = {}
    """Split -> what it takes from train."""
    clean: CleanRules = CleanRules()
    transcode: TranscodeSpec = TranscodeSpec()

    @field_validator("against", mode="before")
    @classmethod
    def _open_folders(cls, value: object) -> object:
        """Take the text of --against for the data set that it names."""
        if not isinstance(value, list | tuple):
            return value
        return tuple(Against.read(v) if isinstance(v, str) else v for v in value)

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("--classes names a class twice; name each once")
        if TRAIN in self.holdouts:
            raise ValueError("--holdout: images are held out of train, so no holdout is train")
        if self.near_duplicates and self.clean.decode != "full":
            raise ValueError("--near-duplicates needs --check full: hashes are of decoded images")
        return self
