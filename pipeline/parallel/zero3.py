"""ZeRO 3's partitions: whole tensors read from them and written into them.

DeepSpeed cuts each parameter into one equal, padded part per rank and lays the parts of a group
end to end in one flat tensor; so one gathering fetches a whole group. Its own accessors gather
parameter by parameter and cannot write one whose size the ranks do not divide.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Partitions:
    """What `optimizer`, DeepSpeed's stage 3 optimizer, holds of the parameters in `names`."""

    def __init__(self, optimizer: Any, names: dict[nn.Parameter, str]) -> None:
        self._optimizer = optimizer
        self._names = names
        self._rank, self._world = dist.get_rank(), dist.get_world_size()

    def read(self, slot: str | None) -> dict[str, Tensor]:
        """Gather weights (`slot` None) or one slot of the optimizer, whole, on every rank."""
        rows = []
        for index in range(len(self._optimizer.fp32_partitioned_groups_flat)):
            flat = self._flat(index, slot)
            gathered = torch.empty(self._world * flat.numel(), device=self._device)
            dist.all_gather_into_tensor(gathered, flat.to(self._device))
            rows.append(gathered.view(self._world, -1))
        whole = {}
        parameter: Any  # with what DeepSpeed added to it
        for parameter, name in self._names.items():
            group, start, length = self._place(parameter)
            parts = rows[group][:, start : start + length].reshape(-1)
            whole[name] = parts[: parameter.ds_numel].view(parameter.ds_shape)
        return whole

    def write(self, slot: str | None, values: dict[str, Tensor]) -> None:
        """Keep this rank's parts of whole tensors; nothing is sent."""
        parameter: Any
        for parameter, name in self._names.items():
            group, start, length = self._place(parameter)
            padded = torch.zeros(self._world * length)
            padded[: values[name].numel()] = values[name].detach().reshape(-1)
            part = padded[self._rank * length : (self._rank + 1) * length]
            self._flat(group, slot).narrow(0, start, length).copy_(part)
            if slot is None:
                parameter.ds_tensor.data.copy_(part)
                if parameter.numel() == values[name].numel():  # small ones stay whole between steps
                    parameter.data.copy_(values[name])

    def _place(self, parameter: nn.Parameter) -> tuple[int, int, int]:
        """Return the group of `parameter` and where its part lies in the group's flat tensor."""
        return self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]

    def _flat(self, group: int, slot: str | None) -> Tensor:
        flat = self._optimizer.fp32_partitioned_groups_flat[group]
        if slot is None:
            return flat.data
        state = self._optimizer.optimizer.state[flat]
        if slot not in state:
            state[slot] = torch.empty_like(flat)
        return state[slot]

    @property
    def _device(self) -> torch.device:
        return next(iter(self._names)).device
