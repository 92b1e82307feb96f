"""What single cards do: data sheets, published training rates, and the rates of one loader core.

A row of RATES is one training rate that somebody measured and published, with its source; `plan`
scales it to other sizes and models by the formula of `pipeline.plan.cost`. A row of CARDS that has
no rate is estimated from the card most like it. People add their own rows with `plan --rates FILE`.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pipeline.spec import Misuse


class Card(NamedTuple):
    """A GPU by its data sheet: dense rates with fp32 sums, one direction of its link to others.

    `tflops_32` is what PyTorch's convolutions use on fp32 tensors: TF32 where the card has it.
    """

    title: str
    tflops_16: float
    tflops_32: float
    memory_gib: float
    memory_gb_s: float
    link_gb_s: float

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * 2**30


CARDS: Mapping[str, Card] = {
    "v100": Card("V100 SXM2 32 GB", 125, 15.7, 32, 900, 150),
    "t4": Card("T4", 65, 8.1, 15, 320, 16),
    "rtx3090": Card("RTX 3090", 71, 35.6, 24, 936, 16),
    "rtx4090": Card("RTX 4090", 165, 82.6, 24, 1008, 32),
    "l4": Card("L4", 121, 60, 22.5, 300, 32),
    "l40s": Card("L40S", 362, 183, 45, 864, 32),
    "a100-40": Card("A100 SXM4 40 GB", 312, 156, 40, 1555, 300),
    "a100": Card("A100 SXM4 80 GB", 312, 156, 80, 2039, 300),
    "h100-pcie": Card("H100 PCIe", 756, 378, 80, 2000, 64),
    "h100": Card("H100 SXM5", 989, 494, 80, 3350, 450),
    "h200": Card("H200 SXM", 989, 494, 140, 4800, 450),
    "b200": Card("B200", 2250, 1125, 179, 8000, 900),
}
"""By the name that `--gpu` takes; figures of NVIDIA's data sheets and architecture papers."""


class Rate(NamedTuple):
    """Images a second that one card trained at, and the model's cost at that size.

    `gmacs` and `melements` are an image's multiply-adds and outputs of convolutions / 1e9 and 1e6
    (`pipeline.models.count`), kept here since a plan needs no models. `bits` is 16 or 32.
    """

    card: str
    model: str
    px: int
    bits: Literal[16, 32]
    images_s: float
    gmacs: float
    melements: float
    source: str
    kind: Literal["published", "measured"] = "published"


_V2 = "NVIDIA DeepLearningExamples, TensorFlow2 efficientnet_v2 README (XLA)"
_V1 = "NVIDIA DeepLearningExamples, PyTorch efficientnet README (AMP)"
_TIMM = "timm results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv"

RATES: tuple[Rate, ...] = (
    Rate("a100", "v2_s", 300, 16, 950, 5.3076, 22.7344, _V2),
    Rate("a100", "v2_s", 300, 32, 390, 5.3076, 22.7344, _V2),
    Rate("a100", "v1_b0", 224, 16, 2489, 0.3858, 6.7480, _V1),
    Rate("a100", "v1_b4", 380, 16, 331, 4.3938, 49.4890, _V1),
    Rate("v100", "v2_s", 300, 16, 380, 5.3076, 22.7344, _V2),
    Rate("v100", "v2_s", 300, 32, 156, 5.3076, 22.7344, _V2),
    Rate("rtx3090", "v2_b0", 192, 16, 3428.08, 0.5282, 3.5108, _TIMM),
    Rate("rtx3090", "v2_b1", 192, 16, 2548.95, 0.7470, 4.5914, _TIMM),
    Rate("rtx3090", "v2_b2", 208, 16, 1951.52, 1.0435, 5.9989, _TIMM),
    Rate("rtx3090", "v2_b3", 240, 16, 1041.71, 1.9080, 9.9518, _TIMM),
    Rate("rtx3090", "v2_s", 288, 16, 559.15, 4.7078, 20.1346, _TIMM),
    Rate("rtx3090", "v2_m", 320, 16, 246.55, 10.9317, 39.9664, _TIMM),
    Rate("rtx3090", "v2_l", 384, 16, 98.76, 35.8994, 101.1556, _TIMM),
    Rate("rtx3090", "v2_xl", 384, 16, 62.18, 52.5293, 139.1978, _TIMM),
    Rate("rtx3090", "v1_b0", 224, 16, 1751.72, 0.3858, 6.7480, _TIMM),
    Rate("rtx3090", "v1_b1", 224, 16, 1325.85, 0.5697, 9.3557, _TIMM),
    Rate("rtx3090", "v1_b2", 256, 16, 978.68, 0.8599, 12.8062, _TIMM),
    Rate("rtx3090", "v1_b3", 288, 16, 572.18, 1.5892, 21.4880, _TIMM),
    Rate("rtx3090", "v1_b4", 320, 16, 354.99, 3.0637, 34.7564, _TIMM),
    Rate("rtx3090", "v1_b5", 456, 16, 113.63, 10.2664, 98.8574, _TIMM),
    Rate("rtx3090", "v1_b6", 528, 16, 64.08, 19.0676, 167.3934, _TIMM),
    Rate("rtx3090", "v1_b7", 600, 16, 37.97, 37.7459, 289.9395, _TIMM),
)

LOADER_CORE = ((128, 903.0), (300, 726.0))
"""(px, images/s of one core) from shards to uint8 batches, photographs as they are: 346 x 2.61 and
272 x 2.67 in the loader table of docs/measurements.md (AMD EPYC; RandAugment was no slower)."""

BYTES_AN_IMAGE: Mapping[str, tuple[int, str]] = {
    "imagenet1k": (107_700, "138 GB of 1,281,167 images"),
    "imagenet21k_winter21": (83_600, "1.1 TB of 13,153,500 images"),
    "imagenet21k_fall11": (92_300, "1.31 TB of 14,197,122 images"),
}
"""Mean size of a stored image and where it is from, by data card, until there are shards."""
PHOTOGRAPH = (110_000, "assumed as for ImageNet's photographs")


def card_named(name: str) -> Card:
    """Return a row of CARDS.

    Raises:
        Misuse: there is no such card; lists those that there are.
    """
    if name.lower() not in CARDS:
        raise Misuse(
            f"--gpu '{name}': no such card; there are {', '.join(CARDS)}. For another one take "
            "the nearest and give its own rates with --rates FILE"
        )
    return CARDS[name.lower()]


def loader_core_images_s(px: int) -> float:
    """Return the images/s that one core brings at `px`; flat outside of what was measured."""
    (low, fast), (high, slow) = LOADER_CORE
    share = min(max((px - low) / (high - low), 0.0), 1.0)
    return fast + share * (slow - fast)
