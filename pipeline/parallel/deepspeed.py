"""DeepSpeed: ZeRO 0 to 3 behind the same contract as DDP.

Mixed precision is DeepSpeed's `torch_autocast` (fp32 weights and BatchNorm, like DDP under
autocast). The engine owns accumulation, so DeepSpeed is told not to count micro-batches. Whole
weights and slots are read and written here, so its own checkpoint files are never used.
"""

import logging
import os
from typing import Any, Protocol

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from pipeline.parallel.place import place_from
from pipeline.parallel.scaling import LossScale, load_scaler, scaler_state
from pipeline.parallel.settings import ComputeSpec, DeepspeedSpec, Precision
from pipeline.parallel.strategy import Compute, Tensors, autocast, set_lr
from pipeline.parallel.world import World
from pipeline.parallel.zero3 import Partitions

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class Deepspeed:
    """The DeepSpeed strategy; see `Strategy` for the contract."""

    def __init__(
        self,
        spec: DeepspeedSpec,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        compute: ComputeSpec,
        first_slots: dict[str, float],
    ) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # On the CPU DeepSpeed would compile an operation of its own for collectives, behind a lock
        # file that outlives a killed attempt and makes the next one wait for ever.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # DeepSpeed looks for its own launcher's variable; SLURM calls it something else.
        os.environ.setdefault("LOCAL_RANK", str(place_from(os.environ).local_rank))
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._first_slots = first_slots
        parts: tuple[Any, ...] = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=_config(spec, compute, world.size),
            dist_init_required=False,
        )
        self._engine, self._optimizer = parts[:2]
        self._stage = spec.zero_stage
        self._device = world.device
        self._precision: Precision = compute.precision
        kinds = (_Replicated, _Sharded, _Sharded, Partitions)
        self._held: _Held = kinds[spec.zero_stage](self._optimizer, self._names)
        self._scaler = self._engine.torch_autocast_z0_gradscaler
        self._loss_scale = None
        if compute.precision == "fp16":
            self._scale_from(compute.loss_scale)

    def forward(self, compute: Compute) -> Tensor:
        with autocast(self._device, self._precision):  # the engine refuses `autograd.grad`
            return compute(self._engine.module)

    def micro_step(self, compute: Compute, last: bool) -> Tensor:
        loss = compute(self._engine)
        self._engine.backward(loss, scale_wrt_gas=False)
        return loss.detach()

    def step(self, lr: float) -> bool:
        set_lr(self._optimizer, lr)
        before = self._scaler.get_scale() if self._scaler is not None else 0.0
        self._engine.step()
        if self._scaler is not None:
            return self._scaler.get_scale() >= before
        overflow = bool(getattr(self._optimizer, "overflow", False))
        if self._loss_scale is not None:
            self._loss_scale.update(overflow)
            self._optimizer.override_loss_scale(self._loss_scale.scale)
        return not overflow

    def discard(self) -> None:
        """Let DeepSpeed believe that the gradients overflowed: it knows where they all lie."""
        if self._stage == 0:
            self._engine.zero_grad()
            return
        endless = torch.tensor(float("inf"))
        name, value = ("scaled_global_norm", endless)
        if self._stage == 3:
            name, value = "_get_norm_groups", [endless]
        setattr(self._optimizer, name, lambda: value)
        self._engine.step()
        delattr(self._optimizer, name)
        assert self._optimizer.overflow

    def weights(self) -> dict[str, Tensor]:
        if self._stage == 3:
            return self._held.read(None)
        return {name: parameter.detach() for parameter, name in self._names.items()}

    def snapshot(self) -> Tensors:
        slots = {
            f"{slot}/{name}": value
            for slot in self._first_slots
            for name, value in self._held.read(slot).items()
        }
        return Tensors(self._held.read(None), slots, self._scale_state())

    @torch.no_grad()
    def restore(self, tensors: Tensors) -> None:
        self._held.write(None, tensors.weights)
        for slot, first in self._first_slots.items():
            values = {
                name: tensors.slots.get(f"{slot}/{name}", torch.full_like(weight, first))
                for name, weight in tensors.weights.items()
            }
            self._held.write(slot, values)
        if tensors.scaler:
            self._load_scale(tensors.scaler)

    def _scale_from(self, first: float) -> None:
        """Start fp16's loss scaling.

        Where gradients are sharded, the scaler that DeepSpeed made is left out: it looks at one
        rank's part of one parameter group, and an overflow never reaches it, since DeepSpeed has
        already dropped the step by then. What is told DeepSpeed instead follows its own verdict,
        which all ranks share.
        """
        if self._scaler is None:
            self._optimizer.torch_autocast_gradscaler = None
            self._loss_scale = LossScale(first)
        self._load_scale({"scale": first, "growth": 0.0})

    def _scale_state(self) -> dict[str, float]:
        if self._loss_scale is not None:
            return self._loss_scale.state()
        return {} if self._scaler is None else scaler_state(self._scaler)

    def _load_scale(self, state: dict[str, float]) -> None:
        if self._loss_scale is not None:
            self._loss_scale.load(state)
            self._optimizer.override_loss_scale(self._loss_scale.scale)
        elif self._scaler is not None:
            load_scaler(self._scaler, state)


class _Held(Protocol):
    """Whole weights (`slot` None) and slots of the optimizer, wherever they lie."""

    def read(self, slot: str | None) -> dict[str, Tensor]: ...
    def write(self, slot: str | None, values: dict[str, Tensor]) -> None: ...


class _Replicated:
    """ZeRO 0: every rank holds everything."""

    def __init__(self, optimizer: Any, names: dict[nn.Parameter, str]) -> None:
        self._optimizer = optimizer
        self._names = names

    def read(self, slot: str | None) -> dict[str, Tensor]:
        if slot is None:
            return {name: parameter.detach() for parameter, name in self._names.items()}
        state = self._optimizer.state
        return {name: state[parameter][slot] for parameter, name in self._names.items()}

    def write(self, slot: str | None, values: dict[str, Tensor]) -> None:
        for parameter, name in self._names.items():
            if slot is None:
                parameter.copy_(values[name])
            else:
                self._optimizer.state[parameter][slot] = values[name].to(parameter).clone()


class _Sharded:
    """ZeRO 1 and 2: whole weights on every rank, fp32 masters and slots in parts."""

    def __init__(self, optimizer: Any, names: dict[nn.Parameter, str]) -> None:
        self._optimizer = optimizer
        self._names = names

    def read(self, slot: str | None) -> dict[str, Tensor]:
        if slot is None:
            return {name: _there(safe_get_full_fp32_param(p)) for p, name in self._names.items()}
        self._link()
        return {
            name: _there(safe_get_full_optimizer_state(parameter, slot))
            for parameter, name in self._names.items()
        }

    def write(self, slot: str | None, values: dict[str, Tensor]) -> None:
        self._link()
        for parameter, name in self._names.items():
            whole = values[name].to(parameter)
            if slot is None:
                parameter.copy_(whole)
                safe_set_full_fp32_param(parameter, whole)
            else:
                safe_set_full_optimizer_state(parameter, whole, slot)

    def _link(self) -> None:
        """Let every parameter know its slice of the sharded optimizer state.

        DeepSpeed links all groups after the first group's first step, when the others have no
        state yet; their slots could not be read then. Linking once more cures it.
        """
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()


def _there(whole: Tensor | None) -> Tensor:
    assert whole is not None, "DeepSpeed holds no part of this parameter"
    return whole


def _config(spec: DeepspeedSpec, compute: ComputeSpec, world_size: int) -> dict[str, Any]:
    mixed = compute.precision != "fp32"
    zero: dict[str, Any] = {
        "stage": spec.zero_stage,
        "reduce_bucket_size": spec.bucket_elements,
        "allgather_bucket_size": spec.bucket_elements,
        "stage3_param_persistence_threshold": spec.persistent_elements,
    }
    if spec.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": compute.clip_norm,
        "torch_autocast": {"enabled": mixed, "dtype": DTYPES[compute.precision]},
        "zero_optimization": zero,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
