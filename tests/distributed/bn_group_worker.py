"""One rank of steps whose BatchNorm statistics are shared by groups; writes what came out.

    RANK=0 WORLD_SIZE=2 python -m tests.distributed.bn_group_worker MICRO_BATCHES FOLDER GROUP...

It does what the engine does (forward passes over this rank's micro-batches, one sum of gradients,
one commit) without a strategy around it, in float64, so that only a mistake can differ.
"""

import copy
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from pipeline.engine.together import Ready, joined
from pipeline.models.batchnorm import commit_statistics, share_statistics
from pipeline.models.network import build_network
from pipeline.models.noise import Noise
from pipeline.models.table import ModelSpec
from pipeline.parallel.neighbours import neighbours
from pipeline.parallel.world import World

BATCH, PX, CLASSES = 3, 16, 5


def ready(index: int, model_noise: Noise) -> Ready:
    """Micro-batch `index`: images of its own mean and contrast, so that sharing shows."""
    rng = np.random.default_rng(index)
    images = torch.from_numpy(rng.standard_normal((BATCH, 3, PX, PX))) * (1 + index) + index
    targets = torch.from_numpy(rng.random((BATCH, CLASSES)))
    return images, targets, model_noise


def step(world: World, group: int, micro_batches: int) -> dict[str, torch.Tensor]:
    """Return this rank's logits, gradients and statistics of one step."""
    spec = ModelSpec(name="tiny", bn_group=group)
    model = build_network(spec, CLASSES, np.random.default_rng(0)).double().train()
    share_statistics(model, neighbours(world, group, 60))
    copy.deepcopy(model)  # as the average is made

    together = spec.together(world.size)
    mine = range(world.rank, micro_batches, world.size)
    parts = len(mine) // together
    results: dict[str, torch.Tensor] = {}
    for start in range(0, len(mine), together):
        chunk = mine[start : start + together]
        images, targets, noise = joined(
            [ready(i, model.draw_noise(BATCH, 0.2, np.random.default_rng(i))) for i in chunk]
        )
        logits = model(images, noise)
        ((logits * targets).sum(1).mean() / parts).backward()
        for i, rows in zip(chunk, logits.detach().split(BATCH), strict=True):
            results[f"logits/{i}"] = rows.contiguous()
    results |= {f"sums/{name}": b.clone() for name, b in model.named_buffers() if "_sum" in name}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        world.sum(parameter.grad)
        results[f"grad/{name}"] = parameter.grad / world.size
    commit_statistics(model, parts, world.sum, micro_batches // together)
    return results | {f"buffer/{n}": b for n, b in model.named_buffers() if "running" in n}


def main(micro_batches: int, folder: Path, groups: list[int]) -> None:
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    world = World(rank, size, torch.device("cpu"))
    for group in groups:
        results = step(world, group, micro_batches)
        save_file(results, folder / f"group-{group}-rank-{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [int(word) for word in sys.argv[3:]])
