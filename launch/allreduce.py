"""A real all-reduce between the nodes, as a job begins: does the network work, and how fast?

    srun --ntasks-per-node=1 python -m launch.allreduce SECONDS

One process of each node joins the others with the backend that training uses (nccl where there is
a GPU, else gloo), over the interface that the site names, and the first one prints the rate.
"""

import json
import os
import sys
import time
from datetime import timedelta

MARK = "all-reduce "
GPU_BYTES, CPU_BYTES = 256 << 20, 16 << 20
"""Of the size of a model's gradients on GPUs; less where the CPU does the sums."""
ROUNDS = 5


def measure(seconds: float) -> dict[str, object]:
    """Join the other processes and reduce some tensors; returns the best round of this process.

    Raises:
        Exception: whatever torch says; the network is not usable as it is set.
    """
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda:0" if on_gpu else "cpu")
    backend = "nccl" if on_gpu else "gloo"
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=seconds))
    try:
        num_bytes = GPU_BYTES if on_gpu else CPU_BYTES
        values = torch.ones(num_bytes // 4, device=device)
        taken = []
        for _ in range(ROUNDS):
            values.fill_(1.0)
            start = time.perf_counter()
            dist.all_reduce(values)
            total = float(values[-1])  # waits for the GPU
            taken.append(time.perf_counter() - start)
            if total != size:
                raise RuntimeError(f"the sum over {size} nodes is {total}")
        rate = num_bytes / 1e6 / min(taken)
        return {"rank": rank, "backend": backend, "mb_s": round(rate, 1), "num_bytes": num_bytes}
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    found = measure(float(sys.argv[1]))
    if found["rank"] == 0:
        print(MARK + json.dumps(found), flush=True)
