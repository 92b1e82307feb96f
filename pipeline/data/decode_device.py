"""JPEGs decoded by the GPU: workers send bytes and draws, nvJPEG and torch make the pixels.

A worker fills one row of uint8 for each image: a short head, then the file as it lies in the shard,
or the finished crop where the file is nothing for the GPU (not baseline or progressive RGB or grey,
cut off, or larger than a row). Crops are drawn from the header's size, so they are those of the CPU
path. nvJPEG's pixels differ from libjpeg's by rounding, and it says less about damage: the shard's
checksums stand guard, and what it refuses is decoded again here, by Pillow.
"""

import io
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.augment import AugmentSpec, Draw, draw
from pipeline.data.batches import MicroBatch
from pipeline.data.decode import BrokenImage, decode_crop, open_rgb
from pipeline.data.resample_device import resize_crops
from pipeline.data.transfer import copy, upload
from pipeline.spec import Failure

HEAD = np.dtype(
    [
        ("file_bytes", "<i4"),  # 0: the row holds pixels
        ("px", "<i4"),
        ("size", "<i4", 2),
        ("box", "<i4", 4),
        ("flip", "?"),
        ("bicubic", "?"),
        ("antialias", "?"),
        ("unused", "u1", 29),
    ]
)
"""What stands before a row's bytes: the draw, and how to resize."""
MIN_FILE_BYTES = 384 * 1024
"""Room for a file in every row; 99 of 100 of ImageNet's are smaller."""
END_OF_IMAGE = b"\xff\xd9"
CHUNK_BYTES = 256 * 1024 * 1024
"""Whole pictures, as pixels, that are decoded at once."""


def row_bytes(px: int) -> int:
    """Return the length of a row: room for a file of most sizes, and for a crop of `px`."""
    return HEAD.itemsize + max(px * px * 3, MIN_FILE_BYTES)


def encode(
    data: bytes | memoryview,
    px: int,
    spec: AugmentSpec,
    magnitude: float,
    rng: np.random.Generator,
    out: np.ndarray,
) -> Draw:
    """Fill a row, `out` (row_bytes(px),) uint8, and return the draw; its ops are not yet applied.

    Raises:
        BrokenImage: `data` is not a whole image, as far as it had to be decoded here.
    """
    head, body = out[: HEAD.itemsize].view(HEAD)[0], out[HEAD.itemsize :]
    size = _gpu_size(data) if len(data) <= len(body) else None
    if size is None:
        pixels = body[: px * px * 3].reshape(px, px, 3)
        drawn = decode_crop(data, px, spec, magnitude, rng, pixels)
        size, length = (0, 0), 0
    else:
        drawn, length = draw(*size, px, spec, magnitude, rng), len(data)
        body[:length] = np.frombuffer(data, np.uint8)
    bicubic = spec.interpolation == "bicubic"
    out[: HEAD.itemsize] = 0
    head["file_bytes"], head["px"], head["size"] = length, px, size
    head["box"], head["flip"] = drawn.box, drawn.flip
    head["bicubic"], head["antialias"] = bicubic, spec.antialias
    return drawn


def send_encoded(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """Bring a micro-batch to `device`; rows that hold files are decoded there.

    Raises:
        Failure: an image that cannot be decoded, by its sample id.
    """
    if batch.images.dim() == 4:
        return copy(batch, device)
    try:
        images = decode_rows(batch.images, device)
    except BrokenRow as error:
        raise Failure(
            f"sample with id {int(batch.ids[error.row])}: {error}; run `python -m data_prep verify`"
            " on the shards, or take decode: cpu, which can replace bad samples (loader.bad)"
        ) from None
    return batch._replace(images=images, labels=batch.labels.to(device, non_blocking=True))


class BrokenRow(BrokenImage):
    """A row whose file is no whole image."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def decode_rows(rows: Tensor, device: torch.device) -> Tensor:
    """Return (B, px, px, 3) uint8 crops on `device` for (B, row_bytes) rows on the host.

    Raises:
        BrokenRow: says which row.
    """
    heads = np.ascontiguousarray(rows[:, : HEAD.itemsize].numpy()).view(HEAD)[:, 0]
    px = int(heads["px"][0])
    images = torch.empty(len(rows), px, px, 3, dtype=torch.uint8, device=device)
    finished = np.flatnonzero(heads["file_bytes"] == 0)
    if len(finished):
        pixels = rows[finished, HEAD.itemsize : HEAD.itemsize + px * px * 3].view(-1, px, px, 3)
        images.index_copy_(0, _index(finished, device), pixels.to(device))
    for chunk in _chunks(heads):
        images.index_copy_(0, _index(chunk, device), _crops(rows, heads, chunk, device))
    return images


def _crops(rows: Tensor, heads: np.ndarray, chunk: np.ndarray, device: torch.device) -> Tensor:
    """Decode the rows of a chunk, and crop, resize and flip them."""
    files = [rows[row, HEAD.itemsize :][: int(heads[row]["file_bytes"])] for row in chunk.tolist()]
    pictures = _decode(files, device)
    crops = []
    for row, picture in zip(chunk.tolist(), pictures, strict=True):
        expected = tuple(heads[row]["size"][::-1].tolist())
        if isinstance(picture, BrokenImage):
            raise BrokenRow(row, str(picture))
        if tuple(picture.shape[1:]) != expected:
            raise BrokenRow(row, f"decodes to {tuple(picture.shape[1:])}, its head says {expected}")
        left, top, right, bottom = heads[row]["box"].tolist()
        crops.append(picture[:, top:bottom, left:right])
    first = heads[chunk[0]]
    interpolation = "bicubic" if first["bicubic"] else "bilinear"
    resized = resize_crops(crops, int(first["px"]), interpolation, bool(first["antialias"]))
    flip = upload(torch.from_numpy(heads["flip"][chunk]), device).view(-1, 1, 1, 1)
    return torch.where(flip, resized.flip(2), resized)


def decode_jpeg(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Decode files, (n,) uint8 on the host, to (3, h, w) uint8 on `device`: by nvJPEG on a GPU.

    Raises:
        RuntimeError: a file is broken, or of a kind that the decoder does not know.
    """
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as torchvisions  # a second to import; no worker needs it

    return list(torchvisions(list(files), ImageReadMode.RGB, device))


def _decode(files: Sequence[Tensor], device: torch.device) -> Sequence[Tensor | BrokenImage]:
    """Decode files together; where the decoder refuses one, each alone, and that one by Pillow."""
    try:
        return decode_jpeg(files, device)
    except RuntimeError:
        return [_decode_alone(file, device) for file in files]


def _decode_alone(file: Tensor, device: torch.device) -> Tensor | BrokenImage:
    try:
        return decode_jpeg([file], device)[0]
    except RuntimeError:
        pass
    try:
        pixels = np.array(open_rgb(file.numpy().tobytes()))
    except BrokenImage as error:
        return error
    return torch.from_numpy(pixels).to(device).permute(2, 0, 1)


def _chunks(heads: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the numbers of rows that hold files, few enough for `CHUNK_BYTES` of pixels."""
    waiting: list[int] = []
    total = 0
    for row in np.flatnonzero(heads["file_bytes"] > 0).tolist():
        pixels = int(heads[row]["size"].astype(np.int64).prod()) * 3
        if waiting and total + pixels > CHUNK_BYTES:
            yield np.array(waiting)
            waiting, total = [], 0
        waiting.append(row)
        total += pixels
    if waiting:
        yield np.array(waiting)


def _index(rows: np.ndarray, device: torch.device) -> Tensor:
    return upload(torch.from_numpy(rows), device)


def _gpu_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return (width, height) of a file that the GPU shall decode, None for any other."""
    if bytes(data[-2:]) != END_OF_IMAGE:
        return None
    try:
        with warnings.catch_warnings(action="error"), Image.open(io.BytesIO(data)) as image:
            usual = image.format == "JPEG" and image.mode in ("RGB", "L")
            return image.size if usual and image.info.get("adobe_transform") != 0 else None
    except (OSError, ValueError, SyntaxError, EOFError, Warning, Image.DecompressionBombError):
        return None
