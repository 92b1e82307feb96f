"""What a training is at one step, beyond what follows from the step itself.

Stage, image size, magnitudes, learning rate and EMA decay are functions of (recipe, step) and
therefore not here. So is the sample order, but for the data that was left out.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

SCHEMA = 1
PARTS = ("weights", "buffers", "ema", "slots")


class Window(NamedTuple):
    """Data that was left out: when the training was sent back to `step`, it went on at batch `end`.

    Batches are counted as the endless stream has them: `first` is the one that `step` would have
    used, and first <= batch < end were left out.
    """

    step: int
    first: int
    end: int


@dataclass
class TrainState:
    """The state of a training after `step` optimizer steps; tensors are whole and fp32.

    `weights`, `buffers` (BatchNorm) and `ema` are keyed by module name, `slots` by
    `SLOT/PARAMETER`. `bad_steps` are those (from 1) whose update was left out because the loss was
    not finite, `windows` the data that was left out, `bad_samples` those that were replaced.
    """

    step: int
    weights: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    slots: dict[str, torch.Tensor]
    scaler: dict[str, float] = field(default_factory=dict)
    best_metric: float | None = None
    best_step: int | None = None
    bad_steps: tuple[int, ...] = ()
    windows: tuple[Window, ...] = ()
    bad_samples: int = 0

    def scalars(self) -> dict[str, Any]:
        """Return everything that is not a tensor, as JSON values."""
        return {
            "schema": SCHEMA,
            "step": self.step,
            "scaler": self.scaler,
            "best_metric": self.best_metric,
            "best_step": self.best_step,
            "bad_steps": list(self.bad_steps),
            "windows": [window._asdict() for window in self.windows],
            "bad_samples": self.bad_samples,
        }

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the tensors by part."""
        return {part: getattr(self, part) for part in PARTS}

    def on_host(self, spare: "TrainState | None" = None) -> "TrainState":
        """Copy every tensor to host memory, so that training may go on while this is written.

        Args:
            spare: a copy that is not needed any more. Its memory is written again: asking for new
                memory costs several times as much as copying into it.
        """
        copies = {}
        for part, tensors in self.tensors().items():
            old = getattr(spare, part) if spare is not None else {}
            copies[part] = {name: _copied(new, old.get(name)) for name, new in tensors.items()}
        if any(t.is_cuda for tensors in self.tensors().values() for t in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return replace(self, scaler=dict(self.scaler), **copies)


def _copied(tensor: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
    """Return a row-major copy in host memory, in `old` where that fits; a GPU's may go on.

    Host memory is copied by NumPy, in one thread: torch has all threads meet at each of hundreds
    of tensors, which took forty times as long where other processes had the cores.
    """
    if old is None or old.shape != tensor.shape or old.dtype != tensor.dtype:
        old = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    if tensor.is_cuda or tensor.dtype == torch.bfloat16:  # which NumPy does not know
        return old.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
    np.copyto(old.numpy(), tensor.detach().numpy())
    return old


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
        bad_steps=tuple(scalars.get("bad_steps", ())),  # older checkpoints have none
        windows=tuple(Window(**window) for window in scalars.get("windows", ())),
        bad_samples=scalars.get("bad_samples", 0),
        **tensors,
    )


def equal(a: TrainState, b: TrainState) -> bool:
    """Return whether two states are the same to the bit."""
    return a.scalars() == b.scalars() and all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
        for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True)
    )
