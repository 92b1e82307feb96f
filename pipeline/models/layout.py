"""From a row of the table to the list of blocks that is built and counted: scaling and rounding.

Both the torch modules and the analytic counts read this list, so they cannot disagree on widths.
"""

import math
from typing import Literal, NamedTuple

from pipeline.models.table import Row

Op = Literal["fused", "mb"]


class Block(NamedTuple):
    """One block: channels, kernel, stride, expansion, and the place in its stage.

    `squeezed` is the inner width of squeeze-and-excitation, 0 where there is none.
    """

    op: Op
    stage: int
    place: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    expand: int
    squeezed: int

    @property
    def hidden(self) -> int:
        """Return the expanded width."""
        return self.inputs * self.expand

    @property
    def has_skip(self) -> bool:
        """Return whether the input is added to the output."""
        return self.stride == 1 and self.inputs == self.outputs


class Layout(NamedTuple):
    """A scaled model: widths of stem and head, and all blocks in order."""

    stem: int
    stem_stride: int
    blocks: tuple[Block, ...]
    head: int

    @property
    def total_stride(self) -> int:
        """Return how many input pixels one pixel of the last feature map spans."""
        return self.stem_stride * math.prod(block.stride for block in self.blocks)


def lay_out(row: Row) -> Layout:
    """Scale `row` by its width and depth and spell out every block."""
    stem = round_channels(row.stem * row.width, row.round_limit)
    blocks: list[Block] = []
    inputs = stem
    for stage, text in enumerate(row.stages):
        op, fields = _parse(text)
        outputs = round_channels(fields["c"] * row.width, row.round_limit)
        for place in range(math.ceil(fields["x"] * row.depth)):
            # The squeeze is relative to what comes into the block, not to the expanded width.
            squeezed = max(1, int(inputs * fields["se"])) if "se" in fields else 0
            kernel, expand = int(fields["k"]), int(fields["e"])
            stride = int(fields["s"]) if place == 0 else 1
            blocks.append(
                Block(op, stage, place, inputs, outputs, kernel, stride, expand, squeezed)
            )
            inputs = outputs
    head = round_channels(row.head * row.width, row.round_limit)
    return Layout(stem, row.stem_stride, tuple(blocks), head)


def round_channels(exact: float, limit: float) -> int:
    """Round to the nearest multiple of 8 (half up, at least 8).

    One multiple more where the rounded width is below `limit` times the exact one: the published
    weights of V1 need 0.9 (only B3's first stage tells), those of V2-B need no limit.
    """
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < limit * exact else rounded


def _parse(text: str) -> tuple[Op, dict[str, float]]:
    op, *words = text.split()
    assert op == "fused" or op == "mb", f"stage '{text}': unknown block '{op}'"
    fields: dict[str, float] = {}
    for word in words:
        key = word.rstrip("0123456789.")
        fields[key] = float(word[len(key) :])
    wanted = {"e", "k", "s", "c", "x"}
    assert wanted <= fields.keys() <= wanted | {"se"}, f"stage '{text}': expected {wanted}"
    return op, fields
