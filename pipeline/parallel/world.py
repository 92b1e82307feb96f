"""The ranks of this training: who we are, and the few collectives that everyone uses.

CPUs speak gloo, GPUs nccl (and gloo for what lies in host memory).
"""

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipeline.parallel.place import place_from
from pipeline.spec import Misuse


@dataclass(frozen=True)
class World:
    """The process group and this rank's device."""

    rank: int
    size: int
    device: torch.device
    owns_group: bool = True

    @property
    def is_first(self) -> bool:
        """Return whether this is rank 0: the one that writes files and talks."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> None:
        """Add `tensor` up over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def sum_later(self, tensor: torch.Tensor) -> dist.Work | None:
        """Start adding `tensor` up; `wait()` on what is returned before reading it."""
        return dist.all_reduce(tensor, async_op=True) if self.size > 1 else None

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            self.sum(torch.zeros(1, device=self.device))
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

    def share(self, value: Any) -> Any:
        """Return rank 0's `value` (anything JSON can hold) on every rank."""
        if self.size == 1:
            return value
        data = json.dumps(value).encode() if self.is_first else b""
        length = torch.tensor([len(data)], dtype=torch.int64)
        dist.broadcast(length, src=0)
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_first:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(buffer, src=0)
        return json.loads(bytes(buffer.tolist()))

    def agree(self, error: str) -> None:
        """Raise the same RuntimeError on all ranks where any rank passes a non-empty `error`."""
        failed = torch.zeros(self.size, dtype=torch.int64)
        failed[self.rank] = 1 if error else 0
        self.sum(failed)
        if error:
            raise RuntimeError(error)
        if failed.any():
            ranks = ", ".join(str(rank) for rank in failed.nonzero().flatten().tolist())
            raise RuntimeError(f"rank {ranks} failed; its own log says why")

    def num_collectives(self) -> int:
        """Return how many collectives of all ranks this one has started, -1 where unknown."""
        count = getattr(dist.group.WORLD, "_get_sequence_number_for_group", None)
        try:
            return int(count()) if count is not None else -1
        except RuntimeError:  # a backend that does not count
            return -1

    def close(self) -> None:
        """Leave the process group, where this world joined it."""
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()


def open_world(timeout_s: int) -> World:
    """Join the process group that the environment describes, or use the one already joined.

    Raises:
        Misuse: the environment is incomplete, or MASTER_ADDR and MASTER_PORT are missing.
    """
    place = place_from(os.environ)
    device = torch.device("cpu")
    backend = "gloo"
    if torch.cuda.is_available():
        device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    if dist.is_initialized():
        return World(place.rank, place.size, device, owns_group=False)
    # Nothing of nccl's own ends a rank before the watchdog has said which one is late.
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(timeout_s))
    timeout = timedelta(seconds=timeout_s)
    if place.size == 1:
        alone = dist.HashStore()
        dist.init_process_group(backend, store=alone, rank=0, world_size=1, timeout=timeout)
        return World(0, 1, device)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise Misuse(f"environment: {name} is not set; the launcher or torchrun sets it")
    dist.init_process_group(
        backend, init_method="env://", rank=place.rank, world_size=place.size, timeout=timeout
    )
    return World(place.rank, place.size, device)
