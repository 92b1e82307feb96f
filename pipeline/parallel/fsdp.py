"""FSDP2 (`fully_shard`): weights, gradients and the optimizer's state live in shards.

Each rank's optimizer works on plain views of its own shards, so any elementwise optimizer will do.
Mixed precision is autocast over fp32 weights, as under DDP. The whole weights that the average
asks for after a step are those that the next forward pass would gather: they are gathered early,
not twice.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from pipeline.parallel.scaling import clip_by_global_norm, load_scaler, scaler_state
from pipeline.parallel.settings import ComputeSpec, FsdpSpec, Precision
from pipeline.parallel.strategy import Compute, Tensors, autocast, set_lr
from pipeline.parallel.world import World

ROWS = [Shard(0)]


class Fsdp:
    """The fully sharded strategy; see `Strategy` for the contract."""

    def __init__(
        self,
        spec: FsdpSpec,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        compute: ComputeSpec,
        first_slots: dict[str, float],
    ) -> None:
        names = {parameter: name for name, parameter in model.named_parameters()}
        self._mesh = init_device_mesh(world.device.type, (world.size,))
        self._model = model
        self._units: list[FSDPModule] = [
            fully_shard(unit, mesh=self._mesh, reshard_after_forward=spec.reshard_after_forward)
            for unit in [*sharded_units(model), model]
        ]
        self._shards = dict(model.named_parameters())
        self._own = {name: nn.Parameter(_local(shard)) for name, shard in self._shards.items()}
        for group in optimizer.param_groups:
            group["params"] = [self._own[names[parameter]] for parameter in group["params"]]
        self._optimizer = optimizer
        self._first_slots = first_slots
        self._world = world
        self._precision: Precision = compute.precision
        self._clip_norm = compute.clip_norm
        self._scaler = ShardedGradScaler(
            world.device.type, init_scale=compute.loss_scale, enabled=compute.precision == "fp16"
        )

    def forward(self, compute: Compute) -> torch.Tensor:
        with autocast(self._world.device, self._precision):
            return compute(self._model)

    def micro_step(self, compute: Compute, last: bool) -> torch.Tensor:
        self._units[-1].set_requires_gradient_sync(last)
        loss = self.forward(compute)
        self._scaler.scale(loss).backward()
        return loss.detach()

    def step(self, lr: float) -> bool:
        set_lr(self._optimizer, lr)
        scale = self._scaler.get_scale() if self._scaler.is_enabled() else 1.0
        with self._gradients() as grads:
            if self._clip_norm:
                self._scaler.unscale_(self._optimizer)
                clip_by_global_norm(grads, self._clip_norm, self._world.sum)
            self._scaler.step(self._optimizer)
            self._scaler.update()
        return not self._scaler.is_enabled() or self._scaler.get_scale() >= scale

    def discard(self) -> None:
        self._reshard()
        for shard in self._shards.values():
            shard.grad = None

    def weights(self) -> dict[str, torch.Tensor]:
        self._reshard()
        for unit in self._units:
            unit.unshard()
        # Copies: the gathered weights themselves vanish with the next state_dict() of the model.
        return {name: weight.detach().clone() for name, weight in self._model.named_parameters()}

    def snapshot(self) -> Tensors:
        weights = {name: self._whole(_local(shard), shard) for name, shard in self._dtensors()}
        slots = {
            f"{slot}/{name}": self._whole(self._optimizer.state[self._own[name]][slot], shard)
            for name, shard in self._dtensors()
            for slot in self._first_slots
        }
        return Tensors(weights, slots, scaler_state(self._scaler))

    @torch.no_grad()
    def restore(self, tensors: Tensors) -> None:
        self._reshard()
        for name, own in self._own.items():
            own.copy_(self._part(tensors.weights[name]))
            state = self._optimizer.state[own]
            for slot, first in self._first_slots.items():
                whole = tensors.slots.get(f"{slot}/{name}")
                state[slot] = torch.full_like(own, first) if whole is None else self._part(whole)
        load_scaler(self._scaler, tensors.scaler)

    @contextlib.contextmanager
    def _gradients(self) -> Iterator[list[torch.Tensor]]:
        """Lend the optimizer this rank's shards of the gradients, then drop them."""
        self._reshard()
        for name, shard in self._shards.items():
            assert shard.grad is not None, f"{name} got no gradient"
            self._own[name].grad = _local(shard.grad)
        yield [own.grad for own in self._own.values() if own.grad is not None]
        for name, shard in self._shards.items():
            shard.grad = self._own[name].grad = None

    def _reshard(self) -> None:
        """Drop gathered weights, which are stale once the shards change."""
        for unit in self._units:
            unit.reshard()

    def _dtensors(self) -> Iterator[tuple[str, DTensor]]:
        for name, shard in self._shards.items():
            assert isinstance(shard, DTensor)
            yield name, shard

    def _whole(self, part: torch.Tensor, like: DTensor) -> torch.Tensor:
        sharded = DTensor.from_local(
            part, self._mesh, ROWS, run_check=False, shape=like.shape, stride=like.stride()
        )
        return sharded.full_tensor()

    def _part(self, whole: torch.Tensor) -> torch.Tensor:
        """Cut this rank's rows out; every rank has the same `whole`, so nothing is sent."""
        rows = whole.to(self._world.device).contiguous()
        return _local(distribute_tensor(rows, self._mesh, ROWS, src_data_rank=None)).clone()


def sharded_units(model: nn.Module) -> list[nn.Module]:
    """Return what is gathered at a time: the members of the model's lists of blocks."""
    found: list[nn.Module] = []
    for child in model.children():
        blocks = isinstance(child, (nn.ModuleList, nn.Sequential))
        nested = blocks and isinstance(next(child.children(), None), nn.ModuleList)
        found += child.children() if blocks and not nested else sharded_units(child)
    return [unit for unit in found if next(unit.parameters(), None) is not None]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    sharded = tensor.detach()
    assert isinstance(sharded, DTensor)
    return sharded.to_local()
