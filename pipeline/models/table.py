"""Every model as a row of one table, with the figures that were published for it.

A stage is a short string: `mb e4 k3 s2 c128 x6 se0.25` is six MBConv blocks that expand 4 times,
kernel 3, the first of stride 2, 128 channels out, squeeze-and-excitation to 0.25 of the channels
that come in; `fused` is Fused-MBConv. Sources: EfficientNet (Tan & Le 2019) tables 1-2,
EfficientNetV2 (Tan & Le 2021) table 4, google/automl `effnetv2_configs.py`. No torch in here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.spec import Misuse, Spec

TIMM = "timm/"
"""What the name of a model of the timm library starts with: `timm/resnet50`."""


@dataclass(frozen=True)
class Row:
    """One model before scaling.

    `width` multiplies channels, `depth` multiplies repeats. `round_limit` 0.9 lets rounding to
    multiples of 8 lose at most a tenth of the channels, 0 rounds to the nearest.
    `params` maps the number of classes to the exact count (weights, biases and BatchNorm affine),
    `gmacs` the image size to multiply-adds / 1e9 with 1000 classes (10 for the two small ones).
    """

    stem: int
    stages: tuple[str, ...]
    head: int
    eval_px: int
    dropout: float
    params: Mapping[int, int]
    gmacs: Mapping[int, float]
    width: float = 1.0
    depth: float = 1.0
    round_limit: float = 0.0
    stem_stride: int = 2


class ModelSpec(Spec):
    """Which row of the table or which model of timm, and how it is built.

    `padding`: `symmetric` (PyTorch's habit) or `same` (TensorFlow's, for weights from there).
    `drop_path`: the share of samples that skip the last block; block i of n has drop_path*i/n (in
    timm's models by their own rule, where they drop branches at all).
    `bn_momentum`: the share of the new statistics in one update (PyTorch's sense of the word).
    `bn_group`: consecutive micro-batches that share their BatchNorm statistics (officially 8).
    A model of timm keeps its own padding and eps.
    """

    name: str
    padding: Literal["symmetric", "same"] = "symmetric"
    drop_path: float = Field(default=0.2, ge=0, lt=1)
    bn_eps: float = Field(default=1e-3, gt=0)
    bn_momentum: float = Field(default=0.1, gt=0, le=1)
    bn_group: int = Field(default=1, ge=1, le=1024)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        # A plain name only: timm would fetch code-free but unsealed weights for `hf-hub:...`.
        if name.startswith(TIMM) and re.fullmatch(r"timm/\w+(\.\w+)?", name, re.ASCII):
            return name
        if name not in TABLE:
            raise ValueError(
                f"no such model; there are: {', '.join(TABLE)}, and with timm installed "
                "timm/NAME, for example timm/resnet50"
            )
        return name

    @model_validator(mode="after")
    def _timm_keeps_its_own(self) -> Self:
        if self.is_timm and (self.padding, self.bn_eps) != ("symmetric", 1e-3):
            raise ValueError(
                "a model of timm keeps its own padding and eps; remove model.padding and "
                "model.bn_eps"
            )
        return self

    @property
    def is_timm(self) -> bool:
        """Return whether this is a model of timm, which has no row."""
        return self.name.startswith(TIMM)

    @property
    def row(self) -> Row:
        """Return the row of the table: architecture, `eval_px`, default `dropout`."""
        return TABLE[self.name]

    def together(self, world: int) -> int:
        """Return how many micro-batches one of `world` ranks takes through the model at once.

        A group of `bn_group` micro-batches lies on consecutive ranks. Where there are fewer ranks
        than that, each takes several of the group in one forward pass, so that the statistics
        are those of the group whatever the world.

        Raises:
            Misuse: neither of the two numbers divides the other.
        """
        if world % self.bn_group and self.bn_group % world:
            raise Misuse(
                f"field 'model.bn_group' is {self.bn_group}: {world} ranks cannot share such "
                "groups; take a number of ranks that divides it, or a multiple of it"
            )
        return max(1, self.bn_group // world)


_V2_B = (
    "fused e1 k3 s1 c16 x1",
    "fused e4 k3 s2 c32 x2",
    "fused e4 k3 s2 c48 x2",
    "mb e4 k3 s2 c96 x3 se0.25",
    "mb e6 k3 s1 c112 x5 se0.25",
    "mb e6 k3 s2 c192 x8 se0.25",
)
_V2_S = (
    "fused e1 k3 s1 c24 x2",
    "fused e4 k3 s2 c48 x4",
    "fused e4 k3 s2 c64 x4",
    "mb e4 k3 s2 c128 x6 se0.25",
    "mb e6 k3 s1 c160 x9 se0.25",
)
_V2_M = (
    "fused e1 k3 s1 c24 x3",
    "fused e4 k3 s2 c48 x5",
    "fused e4 k3 s2 c80 x5",
    "mb e4 k3 s2 c160 x7 se0.25",
    "mb e6 k3 s1 c176 x14 se0.25",
    "mb e6 k3 s2 c304 x18 se0.25",
    "mb e6 k3 s1 c512 x5 se0.25",
)
_V2_L = (
    "fused e1 k3 s1 c32 x4",
    "fused e4 k3 s2 c64 x7",
    "fused e4 k3 s2 c96 x7",
    "mb e4 k3 s2 c192 x10 se0.25",
    "mb e6 k3 s1 c224 x19 se0.25",
    "mb e6 k3 s2 c384 x25 se0.25",
    "mb e6 k3 s1 c640 x7 se0.25",
)
_V2_XL = (
    "fused e1 k3 s1 c32 x4",
    "fused e4 k3 s2 c64 x8",
    "fused e4 k3 s2 c96 x8",
    "mb e4 k3 s2 c192 x16 se0.25",
    "mb e6 k3 s1 c256 x24 se0.25",
    "mb e6 k3 s2 c512 x32 se0.25",
    "mb e6 k3 s1 c640 x8 se0.25",
)
_V1 = (
    "mb e1 k3 s1 c16 x1 se0.25",
    "mb e6 k3 s2 c24 x2 se0.25",
    "mb e6 k5 s2 c40 x2 se0.25",
    "mb e6 k3 s2 c80 x3 se0.25",
    "mb e6 k5 s1 c112 x3 se0.25",
    "mb e6 k5 s2 c192 x4 se0.25",
    "mb e6 k3 s1 c320 x1 se0.25",
)
_TINY = (
    "fused e1 k3 s1 c16 x1",
    "fused e4 k3 s2 c24 x2",
    "mb e4 k3 s2 c40 x2 se0.25",
    "mb e4 k3 s1 c48 x2 se0.25",
)
_V2_CIFAR = (
    "fused e1 k3 s1 c24 x1",
    "fused e4 k3 s2 c32 x2",
    "fused e4 k3 s2 c64 x2",
    "mb e4 k3 s1 c96 x2 se0.25",
)


def _v2_b(
    width: float,
    depth: float,
    px: int,
    dropout: float,
    params: Mapping[int, int],
    gmacs: Mapping[int, float],
) -> Row:
    return Row(32, _V2_B, 1280, px, dropout, params, gmacs, width, depth)


def _v1(
    width: float, depth: float, px: int, dropout: float, params: Mapping[int, int], gmacs: float
) -> Row:
    return Row(32, _V1, 1280, px, dropout, params, {px: gmacs}, width, depth, round_limit=0.9)


def _heads(k1: int, k21: int, goog21: int, p21: int | None = None) -> dict[int, int]:
    """Counts by head: ImageNet-1k, 21k, 21k in Google's numbering, 21k-P winter21."""
    counts = {1000: k1, 21841: k21, 21843: goog21}
    return counts if p21 is None else {**counts, 10450: p21}


TABLE: dict[str, Row] = {
    "v2_b0": _v2_b(
        1.0, 1.0, 224, 0.2, _heads(7_139_704, 33_837_025, 33_839_587, 19_245_154), {224: 0.718}
    ),
    "v2_b1": _v2_b(
        1.0,
        1.1,
        240,
        0.2,
        _heads(8_141_052, 34_838_373, 34_840_935, 20_246_502),
        {240: 1.197, 224: 1.016},
    ),
    "v2_b2": _v2_b(
        1.1,
        1.2,
        260,
        0.3,
        _heads(10_096_086, 39_461_055, 39_463_873, 23_411_136),
        {260: 1.698, 224: 1.169},
    ),
    "v2_b3": _v2_b(
        1.2,
        1.4,
        300,
        0.3,
        _heads(14_358_406, 46_391_023, 46_394_097, 28_883_056),
        {300: 3.011, 224: 1.610},
    ),
    "v2_s": Row(
        stem=24,
        stages=(*_V2_S, "mb e6 k3 s2 c256 x15 se0.25"),
        head=1280,
        eval_px=384,
        dropout=0.2,
        params=_heads(21_458_488, 48_155_809, 48_158_371, 33_563_938),
        gmacs={384: 8.366, 224: 2.850},
    ),
    "v2_m": Row(
        stem=24,
        stages=_V2_M,
        head=1280,
        eval_px=480,
        dropout=0.3,
        params=_heads(54_139_356, 80_836_677, 80_839_239, 66_244_806),
        gmacs={480: 24.582, 224: 5.362},
    ),
    "v2_l": Row(
        stem=32,
        stages=_V2_L,
        head=1280,
        eval_px=480,
        dropout=0.4,
        params=_heads(118_515_272, 145_212_593, 145_215_155, 130_620_722),
        gmacs={480: 56.080, 224: 12.231},
    ),
    "v2_xl": Row(
        stem=32,
        stages=_V2_XL,
        head=1280,
        eval_px=512,
        dropout=0.4,
        params=_heads(208_119_808, 234_817_129, 234_819_691, 220_225_258),
        gmacs={512: 93.353, 224: 17.902},
    ),
    # The small model as first submitted (arXiv 2104.00298v1): a wider last stage and head.
    "v2_s_arxiv_v1": Row(
        stem=24,
        stages=(*_V2_S, "mb e6 k3 s2 c272 x15 se0.25"),
        head=1792,
        eval_px=384,
        dropout=0.3,
        params={1000: 23_940_048},
        gmacs={384: 8.598},
    ),
    "v1_b0": _v1(1.0, 1.0, 224, 0.2, _heads(5_288_548, 31_985_869, 31_988_431, 17_393_998), 0.386),
    "v1_b1": _v1(1.0, 1.1, 240, 0.2, _heads(7_794_184, 34_491_505, 34_494_067, 19_899_634), 0.687),
    "v1_b2": _v1(1.1, 1.2, 260, 0.3, _heads(9_109_994, 38_474_963, 38_477_781, 22_425_044), 0.994),
    "v1_b3": _v1(1.2, 1.4, 300, 0.3, _heads(12_233_232, 44_265_849, 44_268_923), 1.827),
    "v1_b4": _v1(1.4, 1.8, 380, 0.4, _heads(19_341_616, 56_709_529, 56_713_115, 36_285_466), 4.394),
    "v1_b5": _v1(
        1.6, 2.2, 456, 0.4, _heads(30_389_784, 73_092_993, 73_097_091, 49_752_834), 10.266
    ),
    "v1_b6": _v1(
        1.8, 2.6, 528, 0.5, _heads(43_040_704, 91_079_209, 91_083_819, 64_822_954), 19.068
    ),
    "v1_b7": _v1(
        2.0, 3.1, 600, 0.5, _heads(66_347_960, 119_721_761, 119_726_883, 90_549_410), 37.746
    ),
    # Two of this project's own for small images without a GPU: one for demonstrations and tests,
    # one that learns CIFAR-10 in minutes on two cores. The counts are its own golden values.
    "tiny": Row(
        stem=16,
        stages=_TINY,
        head=160,
        eval_px=32,
        dropout=0.1,
        params={10: 119_136},
        gmacs={32: 0.0040},
    ),
    "v2_cifar": Row(
        stem=24,
        stages=_V2_CIFAR,
        head=320,
        eval_px=32,
        dropout=0.1,
        params={10: 466_458},
        gmacs={32: 0.0114},
    ),
}
