"""What a training costs on a cluster: time of a step by stage, memory, traffic; all estimated.

The time of an image is bytes over memory bandwidth plus arithmetic over peak,

    t = PASSES * bytes * elements / bandwidth + 6 * macs / peak,

where `elements` counts the outputs of convolutions. With PASSES = 35.5 it meets the published
rates of 16 models on one card within 5 % (root mean square). A published or measured rate of a
card replaces the formula at its own size and scales it elsewhere: `pace_of`. Units: s, bytes, px.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pipeline.plan.rates import CARDS, RATES, Card, Rate, card_named

PASSES = 35.5
"""How often each output of a convolution crosses the memory bus in a training step: convolution,
BatchNorm and SiLU, forward and backward. Fitted to the RTX 3090's rows of RATES."""
FLOPS_A_MAC = 6
"""2 forward, 4 backward."""
SAVED_A_ELEMENT = 3.25
"""Numbers kept for the backward pass for each output of a convolution: its own, BatchNorm's,
SiLU's, what squeeze-and-excitation and skips add. Measured 3.18 to 3.29; the tests repeat it."""
RESERVED = 1.05
"""What the allocator holds beyond what is asked for."""
CONTEXT_BYTES = 2**30
"""CUDA's context and cuDNN's workspace."""
LAUNCHES = 12
"""Kernels for each convolution with its BatchNorm and SiLU, forward and backward, not compiled."""
LAUNCH_S = 5e-6
OPTIMIZER_BYTES = 36
"""For each weight: reading weight, gradient, two slots and EMA, writing all but the gradient."""
BUCKET_BYTES = 25 * 2**20
"""DDP's default; the last one has no backward pass left to hide behind."""
LINK_SHARE, HIDDEN_SHARE = 0.7, 0.7
"""Of a link's nominal rate that all-reduce gets; of the last backward pass that it may run in."""
LINK_HOP_S, NETWORK_HOP_S = 3e-6, 10e-6

Bits = Literal[16, 32]


class Work(NamedTuple):
    """A model at one image size: of an image, but for `params`, `statistics` and `convolutions`.

    `statistics` counts BatchNorm's running means and variances.
    """

    model: str
    px: int
    params: int
    statistics: int
    macs: float
    elements: float
    convolutions: int


class Cluster(NamedTuple):
    """Equal nodes; `network_gbit` is that of a node, all its adapters together."""

    gpu: str
    nodes: int
    gpus_per_node: int
    network_gbit: float

    @property
    def card(self) -> Card:
        return card_named(self.gpu)

    @property
    def capacity(self) -> int:
        return self.nodes * self.gpus_per_node


class Pace(NamedTuple):
    """Images a second of one card in the middle of a long training, and what that rests on."""

    images_s: float
    kind: Literal["measured", "published", "estimated"]
    basis: str


class Sharding(NamedTuple):
    """What a strategy spreads over the ranks, as ZeRO counts: 1 slots, 2 gradients, 3 weights."""

    stage: int = 0
    offload: bool = False


class Memory(NamedTuple):
    """Bytes on one card in a step."""

    weights: float
    gradients: float
    slots: float
    ema: float
    activations: float

    @property
    def total(self) -> float:
        return sum(self) + CONTEXT_BYTES


def formula_s(card: Card, bits: Bits, macs: float, elements: float) -> float:
    """Return the seconds that one image of one training step takes by the formula above."""
    peak = card.tflops_16 if bits == 16 else card.tflops_32
    moved = PASSES * bits / 8 * elements / (card.memory_gb_s * 1e9)
    return moved + FLOPS_A_MAC * macs / (peak * 1e12)


def slowness(rate: Rate) -> float:
    """Return the time of a row of RATES over the formula's."""
    expected = formula_s(CARDS[rate.card], rate.bits, rate.gmacs * 1e9, rate.melements * 1e6)
    return 1 / (rate.images_s * expected)


def pace_of(gpu: str, work: Work, bits: Bits, own: Sequence[Rate] = ()) -> Pace:
    """Return the rate of a card; `own` rows win over RATES.

    The nearest row of the card scales the formula: the same model before others, then the nearest
    cost. A card without a row takes that of the card whose memory is nearest in speed, so that it
    is as many times faster as the data sheets say and no more.
    """
    seconds = formula_s(CARDS[gpu], bits, work.macs, work.elements)
    fitting = [rows for rows in (own, RATES) if _rows(rows, gpu, bits)]
    rows = fitting[0] if fitting else [*own, *RATES]
    card = gpu if fitting else _most_alike(gpu, rows, bits)
    nearest = min(_rows(rows, card, bits), key=lambda rate: _distance(rate, work))
    text = f"{nearest.images_s:,.0f} images/s of {nearest.model} at {nearest.px} px"
    images_s = 1 / (seconds * slowness(nearest))
    if not fitting:
        other = f"no rate of this card; the nearest is {CARDS[card].title} with {text}"
        return Pace(images_s, "estimated", f"{other}, scaled by the formula ({nearest.source})")
    same = nearest.model == work.model and nearest.px == work.px
    note = "" if same else ", scaled by the formula"
    return Pace(images_s, nearest.kind, f"{text}{note} ({nearest.source})")


def _rows(rows: Sequence[Rate], card: str, bits: Bits) -> list[Rate]:
    return [rate for rate in rows if rate.card == card and rate.bits == bits]


def _distance(rate: Rate, work: Work) -> tuple[bool, float]:
    return rate.model != work.model, abs(math.log(rate.gmacs * 1e9 / work.macs))


def _most_alike(gpu: str, rows: Sequence[Rate], bits: Bits) -> str:
    """Return the card with a row whose memory's speed is nearest; it is what the formula rests on.

    Where two are as near, the one of `rows` that comes first.
    """
    known = dict.fromkeys(rate.card for rate in rows if rate.bits == bits)
    own_gb_s = CARDS[gpu].memory_gb_s
    return min(known, key=lambda card: abs(math.log(CARDS[card].memory_gb_s / own_gb_s)))


def compute_s(card: Card, work: Work, images_s: float, micro_batch: int, accumulate: int) -> float:
    """Return the seconds that a rank computes in a step: passes and the optimizer.

    A micro-batch takes at least the launches of its kernels, however few images it has.
    """
    passes = max(micro_batch / images_s, work.convolutions * LAUNCHES * LAUNCH_S)
    return accumulate * passes + OPTIMIZER_BYTES * work.params / (card.memory_gb_s * 1e9)


def exchange_s(cluster: Cluster, ranks: int, num_bytes: float) -> float:
    """Return the seconds of an all-reduce of `num_bytes` over `ranks`, with nothing to hide behind.

    A ring: each rank sends and receives 2 (n - 1) / n of the bytes. Between nodes all adapters of
    a node share them. Latency: hops around the ring in a node, up and down a tree between nodes,
    for each bucket.
    """
    if ranks == 1:
        return 0.0
    nodes = math.ceil(ranks / cluster.gpus_per_node)
    gb_s = cluster.card.link_gb_s
    if nodes > 1:
        gb_s = min(gb_s, cluster.network_gbit / 8)
    inside = min(ranks, cluster.gpus_per_node) - 1
    hops = 2 * inside * LINK_HOP_S + 2 * math.ceil(math.log2(nodes)) * NETWORK_HOP_S
    buckets = math.ceil(num_bytes / BUCKET_BYTES)
    return 2 * (ranks - 1) / ranks * num_bytes / (gb_s * 1e9 * LINK_SHARE) + buckets * hops


def exposed_s(exchange: float, num_bytes: float, last_pass_s: float) -> float:
    """Return the part of an exchange that the last micro-batch's backward pass cannot hide."""
    backward = last_pass_s * 2 / 3
    last_bucket = exchange * min(1.0, BUCKET_BYTES / num_bytes)
    return max(exchange - HIDDEN_SHARE * backward, last_bucket)


def traffic_bytes(work: Work, sharding: Sharding) -> float:
    """Return what a step exchanges, as bytes of an all-reduce; gradients travel in fp32.

    Sharded weights are gathered twice and gradients scattered once: half as much again.
    """
    return 4 * work.params * (1.5 if sharding.stage == 3 else 1.0)


def memory_of(work: Work, micro_batch: int, bits: Bits, sharding: Sharding, ranks: int) -> Memory:
    """Return what one card holds in a step: all in fp32, activations in `bits`.

    With 16 bits autocast keeps a copy of the weights until the backward pass is over.
    """
    whole = 4.0 * work.params
    share = [1 / ranks if sharding.stage >= stage else 1.0 for stage in (1, 2, 3)]
    kept = micro_batch * work.elements * SAVED_A_ELEMENT * bits / 8 * RESERVED
    return Memory(
        weights=whole * share[2] + (whole / 2 if bits == 16 else 0.0),
        gradients=whole * share[1],
        slots=0.0 if sharding.offload else 2 * whole * share[0],
        ema=whole,
        activations=kept,
    )


def checkpoint_bytes(work: Work) -> int:
    """Return the size of one checkpoint: weights, EMA and two slots; statistics twice; fp32."""
    return 4 * (4 * work.params + 2 * work.statistics)
