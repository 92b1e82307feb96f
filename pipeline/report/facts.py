"""What a page tells, as plain data: anyone may fill it, `collect` does so from run folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Series = Sequence[tuple[int, float]]
"""(step, value) by rising step."""


@dataclass(frozen=True)
class StageRow:
    """A stage as it ran: `start` and `end` are counts of steps done, `settings` are shown as is."""

    index: int
    start: int
    end: int
    px: int
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One evaluated image; `label` and `predicted` are class indices, `image` its bytes."""

    id: int
    label: int
    predicted: int
    probability: float
    image: bytes | None = None


@dataclass(frozen=True)
class Evaluation:
    """The final scores; fractions of `num_images`. `confusion[true][predicted]` counts images."""

    step: int
    num_images: int
    top1: float
    top5: float | None = None
    loss: float | None = None
    classes: Sequence[str] = ()
    confusion: Sequence[Sequence[int]] | None = None
    samples: Sequence[Sample] = ()

    def name(self, index: int) -> str:
        """Return the name of class `index`, or its number where it has none."""
        return self.classes[index] if 0 <= index < len(self.classes) else f"class {index}"


@dataclass(frozen=True)
class Registered:
    """The model version of a run; `lineage` are the versions it came from, nearest first."""

    name: str
    version: int
    uri: str
    digest: str
    lineage: Sequence[str] = ()


@dataclass(frozen=True)
class RunReport:
    """One training. `details` are shown as name and text; unknown parts stay empty or None."""

    name: str
    series: Mapping[str, Series] = field(default_factory=dict)
    stages: Sequence[StageRow] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    num_attempts: int = 0
    evaluation: Evaluation | None = None
    registered: Registered | None = None
    plan_text: str = ""

    @property
    def steps(self) -> int:
        """Return how many steps are on record."""
        ends = [points[-1][0] for points in self.series.values() if points]
        return max([*ends, self.evaluation.step if self.evaluation else 0])


@dataclass(frozen=True)
class TransferTask:
    """Top-1 (fractions) on one task: a list over seeds for each way to start; or why there is none.

    `published` are figures of others, as fractions, by who reported them.
    """

    name: str
    top1: Mapping[str, Sequence[float]] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class TransferReport:
    """The comparison of a finetuned model with others on a suite of tasks."""

    suite: str
    model: str
    tasks: Sequence[TransferTask]
