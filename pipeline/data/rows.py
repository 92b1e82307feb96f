"""What a worker writes for each image of a batch, and what it sends along.

With `loader.decode` and `augment.device` both cpu a row is the finished image. With augment.device
gpu it is the crop, and the ops drawn for it travel beside; with decode gpu it is the file itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import AugmentSpec, Op
from pipeline.data.bad import Replaced
from pipeline.data.batches import MicroBatch, Ticket, pack_ops, pad_labels
from pipeline.data.decode import decode_crop, decode_train
from pipeline.data.ring import Shape

Ops = tuple[Op, ...]


@dataclass(frozen=True)
class Rows:
    """How an image of a training batch is written."""

    augment: AugmentSpec
    decode: Literal["cpu", "gpu"] = "cpu"

    def shape(self, px: int) -> Shape:
        """Return the shape of a row, of uint8."""
        if self.decode == "cpu":
            return px, px, 3
        from pipeline.data.decode_device import row_bytes  # torchvision takes a second to import

        return (row_bytes(px),)

    def fill(
        self, data: bytes, px: int, magnitude: float, rng: np.random.Generator, out: np.ndarray
    ) -> Ops | None:
        """Write a row and return the ops that are left to the device, None where nothing is.

        Raises:
            BrokenImage: `data` is not a whole image.
        """
        if self.decode == "gpu":
            from pipeline.data.decode_device import encode

            return encode(data, px, self.augment, magnitude, rng, out).ops
        if self.augment.device == "gpu":
            return decode_crop(data, px, self.augment, magnitude, rng, out).ops
        decode_train(data, px, self.augment, magnitude, rng, out)
        return None


class Part(NamedTuple):
    """What belongs to the images of a piece, in their order."""

    labels: list[tuple[int, ...]]
    ids: list[int]
    ops: list[Ops]
    replaced: list[Replaced]

    def add(self, sample_id: int, labels: tuple[int, ...], ops: Ops | None = None) -> None:
        """Note the sample of the next image."""
        self.ids.append(sample_id)
        self.labels.append(labels)
        if ops is not None:
            self.ops.append(ops)


def empty_part() -> Part:
    """Return a part to which samples are added."""
    return Part([], [], [], [])


def micro_batch(ticket: Ticket, images: Tensor, parts: Sequence[Part]) -> MicroBatch:
    """Put a micro-batch together from the parts of its pieces."""
    labels, ids = joined(parts)
    ops = [own for part in parts for own in part.ops]
    replaced = tuple(item for part in parts for item in part.replaced)
    packed = pack_ops(ops) if ops else None
    return MicroBatch(ticket.step, ticket.index, images, labels, ids, packed, replaced)


def joined(parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    """Return labels (B, K) and sample ids (B,) of a batch."""
    labels = pad_labels([own for part in parts for own in part.labels])
    return labels, torch.tensor([sample_id for part in parts for sample_id in part.ids])
