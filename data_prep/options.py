"""What a person asks `build` for: every choice that changes the shards, and none that does not."""

import PIL
from pydantic import Field, model_validator

from pipeline.spec import Spec

TOOL = f"data_prep 1, Pillow {PIL.__version__}"
"""What wrote the shards; repaired images depend on Pillow's encoder."""


class BuildSpec(Spec):
    """The choices of one build. Two builds with equal specs and inputs give equal bytes."""

    name: str = Field(pattern=r"^[\w][\w.+-]*$")
    splits: dict[str, str] | None = None
    """Folder -> split; None finds folders named train and test, {} takes none for a split."""
    holdout: float = Field(default=0.0, ge=0.0, lt=1.0)
    classes: tuple[str, ...] = ()
    per_class: int | None = Field(default=None, ge=1)
    shard_mb: float = Field(default=256.0, gt=0.0)
    shard_samples: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    merge_duplicates: bool = False
    allow_empty: bool = False
    eval_labels: dict[str, str] | None = None
    names: dict[str, str] | None = None

    @model_validator(mode="after")
    def _check_names(self) -> "BuildSpec":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("--classes names a class twice; name each once")
        return self
