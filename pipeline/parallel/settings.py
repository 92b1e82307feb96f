"""Settings of the strategies; a typed union, so that adding one is one name here."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.spec import Misuse, Spec

Precision = Literal["fp32", "bf16", "fp16"]


class DdpSpec(Spec):
    """DistributedDataParallel: every rank holds everything, gradients are averaged.

    `static_graph` tells DDP that the graph never changes. It trains the same; on the CPU it is not
    faster, and with three or more ranks it sums in another order, so it is off.
    """

    kind: Literal["ddp"] = "ddp"
    static_graph: bool = False


class DeepspeedSpec(Spec):
    """DeepSpeed: ZeRO 0 shards nothing, 1 the optimizer's state, 2 gradients too, 3 weights too.

    `offload_optimizer` keeps the optimizer's state in host memory and updates weights there.
    `bucket_elements` is how many gradients travel together. `persistent_elements`: under ZeRO 3,
    parameters smaller than this stay whole on every rank.
    """

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload_optimizer: bool = False
    bucket_elements: int = Field(default=50_000_000, gt=0)
    persistent_elements: int = Field(default=100_000, ge=0)

    @model_validator(mode="after")
    def _offload_is_sharded(self) -> Self:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError(
                "offload_optimizer is true, zero_stage 0: only sharded optimizer state can leave "
                "the device; set zero_stage to 1, 2 or 3"
            )
        return self


class FsdpSpec(Spec):
    """PyTorch's fully_shard: weights, gradients and the optimizer's state sharded over the ranks.

    `reshard_after_forward` frees a block's weights between its forward and backward pass (as ZeRO
    3 does); without it they stay until the backward pass is done: more memory, half the gathering.
    """

    kind: Literal["fsdp"] = "fsdp"
    reshard_after_forward: bool = True


StrategySpec = Annotated[DdpSpec | DeepspeedSpec | FsdpSpec, Field(discriminator="kind")]


class ComputeSpec(Spec):
    """What every strategy shares: number formats, memory layout, compilation, patience.

    `loss_scale` is fp16's first loss scale, which then follows the overflows. `clip_norm` bounds
    the global L2 norm of the gradients; 0 leaves them alone, as the official recipes do.
    `compile_mode` is torch.compile's; `cudnn_benchmark` lets the fastest convolutions be found by
    trial, `tf32` lets the factors of fp32 products be rounded to 10 bits.
    `collective_timeout_s` bounds every collective, for the case that the watchdog itself cannot
    run; it is longer than all deadlines of `watch`, which says who is late.
    """

    precision: Precision = "fp32"
    loss_scale: float = Field(default=65536.0, ge=0, le=2.0**32)
    clip_norm: float = Field(default=0.0, ge=0)
    channels_last: bool = True
    compile: bool = False
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    cudnn_benchmark: bool = False
    tf32: bool = False
    collective_timeout_s: int = Field(default=7200, ge=10)

    @model_validator(mode="after")
    def _fp16_is_scaled(self) -> Self:
        if self.precision == "fp16" and self.loss_scale == 0:
            raise ValueError(
                "loss_scale is 0, precision fp16: small gradients would vanish; leave loss_scale "
                "at 65536, or use precision=bf16, which needs none"
            )
        return self


def check_fits(strategy: StrategySpec, compute: ComputeSpec) -> None:
    """Refuse settings that a strategy cannot have.

    Raises:
        Misuse: names both fields, their values and the remedy.
    """
    if compute.compile and isinstance(strategy, DeepspeedSpec) and strategy.zero_stage == 3:
        raise Misuse(
            "compute.compile is true, strategy.zero_stage 3: DeepSpeed gathers weights in hooks "
            "that make the compiler start again in every pass; set compute.compile=false, "
            "zero_stage to 2 or less, or strategy=fsdp"
        )


def meets_in_forward(strategy: StrategySpec) -> bool:
    """Return whether ranks wait for each other before a step's last forward pass has ended.

    FSDP and ZeRO 3 gather weights in it; ZeRO 2 adds up the gradients of each micro-batch.
    """
    if isinstance(strategy, DeepspeedSpec):
        return strategy.zero_stage >= 2
    return isinstance(strategy, FsdpSpec)
