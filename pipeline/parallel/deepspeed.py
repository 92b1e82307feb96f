"""DeepSpeed: ZeRO 0 and 1 behind the same contract as DDP.

Mixed precision is DeepSpeed's `torch_autocast` (fp32 weights and BatchNorm, like DDP under
autocast). The engine owns accumulation, so DeepSpeed is told not to count micro-batches. Whole
weights and slots are read and written through DeepSpeed's `safe_get/safe_set` functions, so its
own checkpoint files are never used.
"""

import logging
import os
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import nn

from pipeline.parallel.place import place_from
from pipeline.parallel.settings import DeepspeedSpec, Precision
from pipeline.parallel.strategy import Compute, Tensors, load_scaler, scaler_state
from pipeline.parallel.world import World


class Deepspeed:
    """The DeepSpeed strategy; see `Strategy` for the contract."""

    def __init__(
        self,
        spec: DeepspeedSpec,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        first_slots: dict[str, float],
    ) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed looks for its own launcher's variable; SLURM calls it something else.
        os.environ.setdefault("LOCAL_RANK", str(place_from(os.environ).local_rank))
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._first_slots = first_slots
        self._sharded = spec.zero_stage > 0
        parts: tuple[Any, ...] = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=_config(spec, precision, world.size),
            dist_init_required=False,
        )
        self._engine, self._optimizer = parts[:2]

    def micro_step(self, compute: Compute, last: bool) -> torch.Tensor:
        loss = compute(self._engine)
        self._engine.backward(loss, scale_wrt_gas=False)
        return loss.detach()

    def step(self, lr: float) -> bool:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        scaler = self._scaler()
        before = scaler.get_scale() if scaler is not None else 0.0
        self._engine.step()
        if scaler is not None:
            return scaler.get_scale() >= before
        return not getattr(self._optimizer, "overflow", False)

    def snapshot(self) -> Tensors:
        if not self._sharded:
            state = self._optimizer.state
            weights = {name: parameter.detach() for parameter, name in self._names.items()}
            slots = {
                f"{slot}/{name}": state[parameter][slot]
                for parameter, name in self._names.items()
                for slot in self._first_slots
            }
            return Tensors(weights, slots, scaler_state(self._scaler()))
        self._link_slots()
        weights, slots = {}, {}
        for parameter, name in self._names.items():
            weights[name] = safe_get_full_fp32_param(parameter)
            for slot in self._first_slots:
                slots[f"{slot}/{name}"] = safe_get_full_optimizer_state(parameter, slot)
        return Tensors(weights, slots, scaler_state(self._scaler()))

    @torch.no_grad()
    def restore(self, tensors: Tensors) -> None:
        if self._sharded:
            self._link_slots()
        for parameter, name in self._names.items():
            weight = tensors.weights[name].to(parameter)
            parameter.copy_(weight)
            if self._sharded:
                safe_set_full_fp32_param(parameter, weight)
            for slot, first in self._first_slots.items():
                whole = tensors.slots.get(f"{slot}/{name}")
                value = torch.full_like(parameter, first) if whole is None else whole.to(parameter)
                if self._sharded:
                    safe_set_full_optimizer_state(parameter, value, slot)
                else:
                    self._optimizer.state[parameter][slot] = value.clone()
        load_scaler(self._scaler(), tensors.scaler)

    def _link_slots(self) -> None:
        """Let every parameter know its slice of the sharded optimizer state.

        DeepSpeed links all groups after the first group's first step, when the others have no
        state yet; their slots could not be read then. Linking once more cures it.
        """
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _scaler(self) -> torch.amp.GradScaler | None:
        if self._sharded:
            return self._optimizer.torch_autocast_gradscaler
        return self._engine.torch_autocast_z0_gradscaler


def _config(spec: DeepspeedSpec, precision: Precision, world_size: int) -> dict[str, Any]:
    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[precision]
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "torch_autocast": {"enabled": precision != "fp32", "dtype": dtype},
        "zero_optimization": {
            "stage": spec.zero_stage,
            "reduce_bucket_size": spec.bucket_elements,
            "allgather_bucket_size": spec.bucket_elements,
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
