"""Which kernels compute a step: compiled or not, chosen by trial or not, TF32 or not."""

import torch
from torch import nn
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters


def set_kernels(cudnn_benchmark: bool, tf32: bool) -> None:
    """Let CUDA's libraries choose kernels; nothing of it matters on a CPU.

    With `cudnn_benchmark` the fastest convolutions are found by trial for each stage's shapes.
    Which these are may differ between attempts, and with them the last bits of a resumed run.
    `tf32` lets factors of fp32 products be rounded to 10 bits (bf16 and fp16 have fewer anyway).
    """
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


def compile_model(
    model: nn.Module, num_stages: int, mode: str = "default", backend: str = "inductor"
) -> None:
    """Let `model` compile itself, in place, once for each shape that it meets.

    Shapes are static: one graph for each stage, whose sizes the compiler knows. The limit on
    graphs is raised accordingly, or the stages past it would silently run uncompiled. In `mode`
    "reduce-overhead" a pass is replayed as a CUDA graph, which pays where kernels are shorter than
    their launches: small models, small images. "max-autotune" also tries kernels, for minutes.
    """
    dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * num_stages + 8)
    nn.Module.compile(model, dynamic=False, mode=mode, backend=backend)


def graphs_compiled() -> int:
    """Return how many graphs this process has compiled so far."""
    return counters["stats"]["unique_graphs"]
