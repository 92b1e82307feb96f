"""Settings of the strategies; a typed union, so that adding one is one name here."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.spec import Spec

Precision = Literal["fp32", "bf16", "fp16"]


class DdpSpec(Spec):
    """DistributedDataParallel: every rank holds everything, gradients are averaged."""

    kind: Literal["ddp"] = "ddp"


class DeepspeedSpec(Spec):
    """DeepSpeed: ZeRO 0 (nothing sharded) or 1 (optimizer state sharded over the ranks)."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1] = 1
    bucket_elements: int = Field(default=50_000_000, gt=0)


StrategySpec = Annotated[DdpSpec | DeepspeedSpec, Field(discriminator="kind")]


class ComputeSpec(Spec):
    """What every strategy shares: number formats, memory layout, compilation, patience.

    `collective_timeout_s` bounds every collective: a dead peer becomes an error, not a hang.
    """

    precision: Precision = "fp32"
    channels_last: bool = True
    compile: bool = False
    collective_timeout_s: int = Field(default=600, ge=10)
