"""The recipe: every room's settings composed into one frozen object, and the plan that follows.

Only this file knows all rooms' settings; only jobs see the whole. A config file plus overrides
becomes a `Recipe`; the resolved values are written into the run's folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.checkpoint.settings import CheckpointSpec
from pipeline.data.augment import AugmentSpec
from pipeline.data.loading import LoaderSpec
from pipeline.data.places import PlacesSpec
from pipeline.data.preprocess import PreprocessSpec
from pipeline.engine.settings import GuardSpec, WatchSpec
from pipeline.evaluate.settings import EvaluateSpec
from pipeline.models.count import check_sizes
from pipeline.models.layout import lay_out
from pipeline.models.table import ModelSpec
from pipeline.optim.settings import LossSpec, RmspropSpec
from pipeline.parallel.settings import ComputeSpec, DdpSpec, StrategySpec, check_fits
from pipeline.plan.lr import LrSpec
from pipeline.plan.plan import EmaSpec, LengthSpec, Plan, check_px, make_plan
from pipeline.plan.stages import StagesSpec
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse, Spec, load, merge
from pipeline.tracking.settings import TrackingSpec

WORDS = {"model": "name", "data": "path", "strategy": "kind", "init": "from"}
"""Sections that may be one plain word, and the key that it stands for."""


def _word(section: str) -> BeforeValidator:
    """Accept a plain word for a section."""
    key = WORDS[section]
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class BatchSpec(Spec):
    """The global batch, constant over all stages; micro-batches are settings of the stages."""

    global_size: int = Field(gt=0)


class DataSpec(Spec):
    """A folder or URL of shards and what is known of it before it is there (a card's counts).

    `stream` is a pattern of tars without an index to train on instead of the `train` split, in
    plain webdataset order and with its fewer promises; the folder still gives classes and `eval`.
    """

    path: str
    train: str = "train"
    eval: str = "eval"
    name: str | None = None
    num_train: int | None = Field(default=None, gt=0)
    num_eval: int | None = Field(default=None, gt=0)
    num_classes: int | None = Field(default=None, gt=1)
    source: str = ""
    stream: str | None = None
    shards: PlacesSpec = PlacesSpec()
    """How they come to this node."""

    @model_validator(mode="after")
    def _stream_has_a_length(self) -> Self:
        if self.stream is not None and self.num_train is None:
            raise ValueError("stream needs num_train, the number of images in its tars")
        return self


class InitSpec(Spec):
    """Where the first weights come from: `models:/NAME@alias`, `models:/NAME/3`, a folder, or
    `tf:`, `timm:`, `torchvision:` and a place (docs/weights.md)."""

    origin: str = Field(alias="from")


class Recipe(Spec):
    """Everything that defines a training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    runs: str = "runs"
    variant: Literal["released", "paper", "arxiv_v1", "own"] = "own"
    source: str = ""
    expects: str = ""
    seed: int = Field(default=0, ge=0)
    length: LengthSpec
    batch: BatchSpec
    stages: StagesSpec
    lr: LrSpec
    ema: EmaSpec = EmaSpec()
    model: Annotated[ModelSpec, _word("model")]
    data: Annotated[DataSpec, _word("data")]
    augment: AugmentSpec = AugmentSpec()
    preprocess: PreprocessSpec
    loader: LoaderSpec = LoaderSpec()
    optim: RmspropSpec = RmspropSpec()
    loss: LossSpec = LossSpec()
    strategy: Annotated[StrategySpec, _word("strategy")] = DdpSpec()
    compute: ComputeSpec = ComputeSpec()
    guard: GuardSpec = GuardSpec()
    watch: WatchSpec = WatchSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    tracking: TrackingSpec = TrackingSpec()
    init: Annotated[InitSpec, _word("init")] | None = None

    @model_validator(mode="after")
    def _lanes_hold_micro_batches(self) -> Self:
        for stage in self.stages.resolve():
            if self.loader.lanes % stage.micro_batches:
                raise ValueError(
                    f"loader.lanes is {self.loader.lanes}, stages have {stage.micro_batches} "
                    "micro-batches: lanes must be a multiple of them; raise loader.lanes"
                )
        return self

    @model_validator(mode="after")
    def _groups_hold_micro_batches(self) -> Self:
        for stage in self.stages.resolve():
            if stage.micro_batches % self.model.bn_group:
                raise ValueError(
                    f"model.bn_group is {self.model.bn_group}, stages have {stage.micro_batches} "
                    "micro-batches: groups must divide them; change one of the two"
                )
        return self

    @model_validator(mode="after")
    def _strategy_fits_compute(self) -> Self:
        try:
            check_fits(self.strategy, self.compute)
        except Misuse as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def folder(self) -> RunFolder:
        """Return the run's folder, absolute."""
        return RunFolder(Path(self.runs).resolve() / self.name)

    def plan(self, num_train: int) -> Plan:
        """Return the plan for a training split of `num_train` samples.

        This is where sizes in px are judged, for every command: a row of the table by its strides,
        a model of timm by trying them without data.

        Raises:
            Misuse: settings contradict each other, or the model cannot take one of the sizes.
        """
        smallest_px = 1 if self.model.is_timm else lay_out(self.model.row).total_stride
        check_px("preprocess.eval_px", self.preprocess.eval_px, smallest_px)
        plan = make_plan(
            self.length,
            self.stages,
            self.lr,
            self.ema,
            self.batch.global_size,
            num_train,
            smallest_px,
        )
        sizes = {f"stages.{stage.number}.px": stage.settings.px for stage in plan.stages}
        if self.model.bn_group == 1:
            _check_batch_norm(plan, smallest_px)
        check_sizes(self.model, {**sizes, "preprocess.eval_px": self.preprocess.eval_px})
        return plan

    def check_patience(self) -> None:
        """Refuse collectives that fail before the watchdog can find out who is late.

        Raises:
            Misuse: names both fields, their values and the remedy.
        """
        field, longest_s = self.watch.longest
        if self.compute.collective_timeout_s <= longest_s:
            raise Misuse(
                f"compute.collective_timeout_s is {self.compute.collective_timeout_s}, "
                f"watch.{field} {longest_s:g}: a collective would fail before the watchdog finds "
                f"out who is late; set compute.collective_timeout_s over {longest_s:g}, or "
                f"watch.{field} lower"
            )

    def values(self) -> dict[str, Any]:
        """Return the plain values, as they are recorded and read again."""
        return self.model_dump(mode="json", by_alias=True)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a config file and overrides into a recipe.

    `data` may name a card (`data=cifar10` reads `data/cifar10.yaml` beside the config), or be a
    folder of shards.

    Raises:
        Misuse: lists every mistake with file, field, value and what is expected.
    """
    path = Path(path)
    values = load(path, overrides, WORDS)
    values["data"] = _with_card(values.get("data"), path.parent / "data")
    return Recipe.parse(values, str(path))


def load_recorded(folder: RunFolder) -> Recipe:
    """Read the recipe that a run recorded in its folder.

    Raises:
        Misuse: there is no such run.
    """
    if not folder.recipe.is_file():
        raise Misuse(f"{folder.path}: not a run folder (recipe.yaml is missing)")
    return Recipe.parse(load(folder.recipe), str(folder.recipe))


def _with_card(data: Any, cards: Path) -> Any:
    """Replace a card's name by its content; other keys of `data` stay on top of it."""
    top = {"path": data} if isinstance(data, str) else data
    if not isinstance(top, dict) or not isinstance(top.get("path"), str):
        return data
    name = top["path"]
    card = cards / f"{name}.yaml"
    if "/" in name or not card.is_file():
        if "/" not in name and not Path(name).is_dir():
            known = ", ".join(sorted(p.stem for p in cards.glob("*.yaml")))
            raise Misuse(
                f"field 'data' is '{name}': neither a folder of shards nor a data card; "
                f"cards in {cards}: {known}"
            )
        return top
    rest = {key: value for key, value in top.items() if key != "path"}
    return merge(load(card), {"name": name, **rest})


def _check_batch_norm(plan: Plan, stride_px: int) -> None:
    """Refuse single images of which `stride_px` leaves one pixel: they have no deviation.

    Raises:
        Misuse: names the stage and both remedies.
    """
    for number, stage in ((planned.number, planned.settings) for planned in plan.stages):
        if stage.micro_batches == plan.global_batch and stage.px <= stride_px:
            raise Misuse(
                f"field 'stages.{number}.micro_batches' is {stage.micro_batches}: of a single "
                f"image of {stage.px} px the model's strides leave one pixel, which BatchNorm "
                f"cannot normalise; use at most {plan.global_batch // 2} micro-batches, or images "
                f"over {stride_px} px (stages.{number}.px)"
            )
