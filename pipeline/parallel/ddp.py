"""DistributedDataParallel: gradients averaged over ranks, everything else held by each of them.

Buffers are not broadcast: BatchNorm statistics are combined once a step by the engine. Gradients
live in the communication buckets, and while micro-batches add up nothing is sent. A rank that is
alone has nobody to average with: its model is left as it is, which saves a few per cent of a step.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.parallel.scaling import clip_by_global_norm, load_scaler, scaler_state
from pipeline.parallel.settings import ComputeSpec, DdpSpec, Precision
from pipeline.parallel.strategy import Compute, Tensors, autocast, set_lr
from pipeline.parallel.world import World


class Ddp:
    """The plain strategy; see `Strategy` for the contract."""

    def __init__(
        self,
        spec: DdpSpec,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        compute: ComputeSpec,
        first_slots: dict[str, float],
    ) -> None:
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._optimizer = optimizer
        self._first_slots = first_slots
        self._device = world.device
        self._precision: Precision = compute.precision
        self._clip_norm = compute.clip_norm
        self._scaler = torch.amp.GradScaler(
            world.device.type, init_scale=compute.loss_scale, enabled=compute.precision == "fp16"
        )
        self._ddp = _wrap(spec, world, model) if world.size > 1 else None
        self._wrapped = self._ddp or model

    def forward(self, compute: Compute) -> torch.Tensor:
        with self._unsent(), autocast(self._device, self._precision):
            return compute(self._wrapped)

    def micro_step(self, compute: Compute, last: bool) -> torch.Tensor:
        with nullcontext() if last else self._unsent():
            with autocast(self._device, self._precision):
                loss = compute(self._wrapped)
            self._scaler.scale(loss).backward()
        return loss.detach()

    def step(self, lr: float) -> bool:
        set_lr(self._optimizer, lr)
        scale = self._scaler.get_scale() if self._scaler.is_enabled() else 1.0
        if self._clip_norm:
            self._scaler.unscale_(self._optimizer)
            grads = [parameter.grad for parameter in self._names if parameter.grad is not None]
            clip_by_global_norm(grads, self._clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.discard()
        return not self._scaler.is_enabled() or self._scaler.get_scale() >= scale

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=self._ddp is None)  # buckets must stay in place

    def _unsent(self) -> AbstractContextManager[object]:
        """Return the context in which gradients only add up."""
        return nullcontext() if self._ddp is None else self._ddp.no_sync()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for parameter, name in self._names.items()}

    def snapshot(self) -> Tensors:
        slots = {
            f"{slot}/{name}": self._optimizer.state[parameter][slot]
            for parameter, name in self._names.items()
            for slot in self._first_slots
        }
        return Tensors(self.weights(), slots, scaler_state(self._scaler))

    @torch.no_grad()
    def restore(self, tensors: Tensors) -> None:
        for parameter, name in self._names.items():
            parameter.copy_(tensors.weights[name])
            state = self._optimizer.state[parameter]
            for slot, first in self._first_slots.items():
                whole = tensors.slots.get(f"{slot}/{name}")
                value = torch.full_like(parameter, first) if whole is None else whole
                state[slot] = value.to(parameter).clone(memory_format=torch.preserve_format)
        load_scaler(self._scaler, tensors.scaler)


def _wrap(spec: DdpSpec, world: World, model: nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # torch 2.15 renames the argument; 2.11 knows only the old name
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            static_graph=spec.static_graph,
        )
