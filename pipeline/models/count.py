"""Parameters and multiply-adds of a model, counted without data or weights.

A row of the table is counted on paper, without torch; a model of timm is run on the meta device.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pipeline.models.layout import Block, Layout, lay_out
from pipeline.models.table import ModelSpec, Row


class Conv(NamedTuple):
    """A convolution (or the classifier, on one pixel): what it holds and where it is applied.

    `inputs` is per group. `extras` is the number of further parameters per output channel: 2 for
    a BatchNorm, 1 for a bias.
    """

    kernel: int
    inputs: int
    outputs: int
    extras: int
    px: int

    @property
    def weights(self) -> int:
        """Return the size of the weight."""
        return self.kernel**2 * self.inputs * self.outputs


def model_params(spec: ModelSpec, num_classes: int) -> int:
    """Count the trainable numbers of any model.

    Raises:
        Misuse: timm is not installed, or has no such model.
    """
    if spec.is_timm:
        from pipeline.models.baseline_trial import baseline_params

        return baseline_params(spec, num_classes)
    return params(spec.row, num_classes)


def model_macs(spec: ModelSpec, px: int, num_classes: int) -> int:
    """Count the multiply-adds of one forward pass of any model on one image.

    Raises:
        Misuse: timm is not installed, has no such model, or it cannot take images of `px`.
    """
    if spec.is_timm:
        from pipeline.models.baseline_trial import baseline_macs

        return baseline_macs(spec, px, num_classes)
    return macs(spec.row, px, num_classes)


def check_sizes(spec: ModelSpec, sizes: Mapping[str, int]) -> None:
    """Try the image sizes of `sizes` (px by field) on a model of timm, without data.

    Rows of the table pass: the plan knows their strides.

    Raises:
        Misuse: it cannot take one of them; names the field and the size it was made for.
    """
    if spec.is_timm:
        from pipeline.models.baseline_trial import check_takes

        for field, px in sizes.items():
            check_takes(spec, field, px)


def params(row: Row, num_classes: int) -> int:
    """Count trainable numbers: weights, biases, BatchNorm affine; running statistics are none."""
    convs = convolutions(lay_out(row), row.eval_px, num_classes)
    return sum(conv.weights + conv.extras * conv.outputs for conv in convs)


def macs(row: Row, px: int, num_classes: int) -> int:
    """Count the multiply-adds of one forward pass on one image of `px` x `px` pixels.

    Convolutions and the classifier count; activations, BatchNorm and pooling do not. Papers call
    this figure FLOPs.
    """
    return sum(conv.weights * conv.px**2 for conv in convolutions(lay_out(row), px, num_classes))


def convolutions(layout: Layout, px: int, num_classes: int) -> Iterator[Conv]:
    """Walk through the model in order; both paddings halve n pixels to ceil(n/2)."""
    px = _after(px, layout.stem_stride)
    yield Conv(3, 3, layout.stem, 2, px)
    for block in layout.blocks:
        yield from _fused(block, px) if block.op == "fused" else _mb(block, px)
        px = _after(px, block.stride)
    yield Conv(1, layout.blocks[-1].outputs, layout.head, 2, px)
    yield Conv(1, layout.head, num_classes, 1, 1)


def _fused(block: Block, px: int) -> Iterator[Conv]:
    out = _after(px, block.stride)
    if block.expand == 1:
        yield Conv(block.kernel, block.inputs, block.outputs, 2, out)
    else:
        yield Conv(block.kernel, block.inputs, block.hidden, 2, out)
        yield Conv(1, block.hidden, block.outputs, 2, out)


def _mb(block: Block, px: int) -> Iterator[Conv]:
    out = _after(px, block.stride)
    if block.expand != 1:
        yield Conv(1, block.inputs, block.hidden, 2, px)
    yield Conv(block.kernel, 1, block.hidden, 2, out)
    if block.squeezed:
        yield Conv(1, block.hidden, block.squeezed, 1, 1)
        yield Conv(1, block.squeezed, block.hidden, 1, 1)
    yield Conv(1, block.hidden, block.outputs, 2, out)


def _after(px: int, stride: int) -> int:
    return -(-px // stride)
