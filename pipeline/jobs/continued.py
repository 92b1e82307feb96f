"""What a run and its checkpoints must have in common, whatever changes a resume accepts.

Weights of another architecture do not fit, and a head goes on only under the classes that its rows
stand for: equally many others would be learnt over it without any sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.data.labels import LabelSpace
from pipeline.models.table import ModelSpec
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse

if TYPE_CHECKING:  # a run's settings are checked before torch is loaded
    from torch import Tensor

    from pipeline.checkpoint.state import TrainState

LABELS = "labels.json"
"""The label space in the folder of a checkpoint."""


def check_continues(
    folder: RunFolder, recorded: ModelSpec, model: ModelSpec, labels: LabelSpace
) -> None:
    """Refuse to go on from checkpoints of another model or label space.

    Raises:
        Misuse: names the field, both values and how to take the weights over into another run.
    """
    step = folder.latest_step()
    if step < 0:
        return
    if recorded.name != model.name:
        raise Misuse(
            f"field 'model.name' is '{model.name}', but the checkpoints in {folder.checkpoints} "
            f"are of '{recorded.name}'; set model.name={recorded.name}, or start another run with "
            "another name=..."
        )
    known = read_json(folder.checkpoints / f"step-{step:09d}" / LABELS)
    classes = known.get("classes") if isinstance(known, dict) else None
    if classes is not None and tuple(classes) != labels.classes:
        raise Misuse(
            f"field 'data' has the {len(labels):,} classes of label space '{labels.name}', but the "
            f"checkpoints in {folder.checkpoints} are of {len(classes):,} others ("
            f"{_first_difference(classes, labels.classes)}); use the shards that the run was "
            "started with, or another name=... (init=PACKAGE takes a finished run's head over, "
            "class by class)"
        )


def check_shapes(state: TrainState, model: Mapping[str, Tensor], where: str) -> None:
    """Refuse a checkpoint whose tensors are not those of `model` (a whole state dict).

    Raises:
        Misuse: names `where` it lies, the first tensor that differs, and the remedy.
    """
    found = {**state.weights, **state.buffers}
    for name in sorted({*model, *found}):
        theirs, ours = found.get(name), model.get(name)
        if theirs is None or ours is None or theirs.shape != ours.shape:
            raise Misuse(
                f"{where}: '{name}' is {_shape(theirs)} there and {_shape(ours)} in the model of "
                "field 'model': a checkpoint of another architecture or number of classes; use "
                "the settings that the run was started with, or another name=..."
            )


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"


def _first_difference(theirs: list[str], ours: tuple[str, ...]) -> str:
    pairs = enumerate(zip(theirs, ours, strict=False))
    return next(
        (f"class {i} is '{a}' there and '{b}' here" for i, (a, b) in pairs if a != b),
        "the first ones are alike",
    )
