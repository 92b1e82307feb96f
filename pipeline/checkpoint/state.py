"""What a training is at one step, beyond what follows from the step itself.

Stage, image size, magnitudes, learning rate, EMA decay and sample order are functions of (recipe,
step) and therefore not here.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

SCHEMA = 1
PARTS = ("weights", "buffers", "ema", "slots")


@dataclass
class TrainState:
    """The state of a training after `step` optimizer steps; tensors are whole and fp32.

    `weights`, `buffers` (BatchNorm) and `ema` are keyed by module name, `slots` by
    `SLOT/PARAMETER`.
    """

    step: int
    weights: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    slots: dict[str, torch.Tensor]
    scaler: dict[str, float] = field(default_factory=dict)
    best_metric: float | None = None
    best_step: int | None = None

    def scalars(self) -> dict[str, Any]:
        """Return everything that is not a tensor, as JSON values."""
        values = {"schema": SCHEMA, "step": self.step, "scaler": self.scaler}
        return {**values, "best_metric": self.best_metric, "best_step": self.best_step}

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the tensors by part."""
        return {part: getattr(self, part) for part in PARTS}

    def on_host(self) -> "TrainState":
        """Copy every tensor to host memory, so that training may go on while this is written."""
        copies = {
            part: {
                name: tensor.detach().to("cpu", copy=True).contiguous()
                for name, tensor in tensors.items()
            }
            for part, tensors in self.tensors().items()
        }
        return TrainState(
            step=self.step,
            scaler=dict(self.scaler),
            best_metric=self.best_metric,
            best_step=self.best_step,
            **copies,
        )


def state_from(
    scalars: dict[str, Any], tensors: dict[str, dict[str, torch.Tensor]], source: str
) -> TrainState:
    """Put a state together again.

    Raises:
        ValueError: it was written by another version of the format.
    """
    if scalars.get("schema") != SCHEMA:
        raise ValueError(
            f"{source}: field 'schema' is {scalars.get('schema')!r}, this version reads {SCHEMA}; "
            "resume with the version that wrote it"
        )
    return TrainState(
        step=scalars["step"],
        scaler=scalars["scaler"],
        best_metric=scalars["best_metric"],
        best_step=scalars["best_step"],
        **tensors,
    )


def equal(a: TrainState, b: TrainState) -> bool:
    """Return whether two states are the same to the bit."""
    return a.scalars() == b.scalars() and all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
        for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True)
    )
