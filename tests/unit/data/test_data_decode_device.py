"""JPEGs that the device decodes: the same crops, and a safe way for what is nothing for it."""

import io
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import decode_device
from pipeline.data.augment import AugmentSpec
from pipeline.data.batches import MicroBatch
from pipeline.data.decode import BrokenImage, decode_crop
from pipeline.data.decode_device import (
    HEAD,
    BrokenRow,
    decode_rows,
    encode,
    row_bytes,
    send_encoded,
)
from pipeline.data.loader import TrainLoader
from pipeline.data.loading import LoaderSpec
from pipeline.data.order import Order
from pipeline.data.transfer import device_loader
from pipeline.plan.draws import Stream, keyed
from pipeline.spec import Failure, Misuse

CPU = torch.device("cpu")
PX = 32
SPEC = AugmentSpec()


def rng(number: int) -> np.random.Generator:
    return keyed(Stream.AUGMENT, 0, number)


def picture(width: int = 90, height: int = 70, mode: str = "RGB", **settings: Any) -> bytes:
    """Return a smooth picture as a file; JPEG unless `format` says otherwise."""
    few = np.random.default_rng(width).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    large = Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    large.save(buffer, **{"format": "JPEG", "quality": 90, **settings})
    return buffer.getvalue()


def rows_of(files: list[bytes], spec: AugmentSpec = SPEC, px: int = PX) -> torch.Tensor:
    rows = np.full((len(files), row_bytes(px)), 77, np.uint8)
    for number, (data, row) in enumerate(zip(files, rows, strict=True)):
        encode(data, px, spec, 9.0, rng(number), row)
    return torch.from_numpy(rows)


def holds_file(row: torch.Tensor) -> bool:
    return bool(row[: HEAD.itemsize].numpy().view(HEAD)["file_bytes"][0] > 0)


def cropped(data: bytes, number: int, spec: AugmentSpec = SPEC, px: int = PX) -> np.ndarray:
    out = np.empty((px, px, 3), np.uint8)
    decode_crop(data, px, spec, 9.0, rng(number), out)
    return out


FOR_THE_DEVICE = {
    "4:4:4": picture(subsampling=0),
    "4:2:0": picture(subsampling=2),
    "grey": picture(mode="L"),
    "progressive": picture(progressive=True),
    "tiny": picture(1, 1),
    "wide": picture(300, 9),
    "tall": picture(9, 300),
}
FOR_PILLOW = {
    "png": picture(format="PNG"),
    "cmyk": picture(mode="CMYK"),
    "webp": picture(format="WEBP"),
    "more bytes after the end": picture() + b"more",
}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_crops_are_those_of_the_cpu_within_rounding(interpolation, antialias):
    """Both decode with libjpeg-turbo here; what may differ is the rounding of the resize."""
    spec = AugmentSpec(interpolation=interpolation, antialias=antialias)
    files = list(FOR_THE_DEVICE.values())
    rows = rows_of(files, spec)
    assert all(holds_file(row) for row in rows)
    for number, (data, image) in enumerate(zip(files, decode_rows(rows, CPU), strict=True)):
        difference = np.abs(image.numpy().astype(int) - cropped(data, number, spec))
        assert difference.max() <= 3 and difference.mean() < 0.1, list(FOR_THE_DEVICE)[number]


@pytest.mark.parametrize("kind", FOR_PILLOW)
def test_other_files_are_decoded_by_the_worker_to_the_very_pixels(kind):
    rows = rows_of([FOR_PILLOW[kind]])
    assert not holds_file(rows[0])
    assert np.array_equal(decode_rows(rows, CPU)[0].numpy(), cropped(FOR_PILLOW[kind], 0))


def test_a_file_larger_than_a_row_is_decoded_by_the_worker(monkeypatch):
    monkeypatch.setattr(decode_device, "MIN_FILE_BYTES", 100)
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    assert len(buffer.getvalue()) > row_bytes(PX)
    rows = rows_of([buffer.getvalue(), picture(quality=10)])
    assert [holds_file(row) for row in rows] == [False, True]
    images = decode_rows(rows, CPU).numpy()
    assert np.array_equal(images[0], cropped(buffer.getvalue(), 0))


def test_a_mixture_keeps_its_order(monkeypatch):
    """Files and finished pixels alternate, and files need more than one chunk."""
    monkeypatch.setattr(decode_device, "CHUNK_BYTES", 90 * 70 * 3 * 2)
    kinds = [FOR_THE_DEVICE["4:2:0"], FOR_PILLOW["png"]] * 5
    images = decode_rows(rows_of(kinds), CPU).numpy().astype(int)
    for number, (data, image) in enumerate(zip(kinds, images, strict=True)):
        assert np.abs(image - cropped(data, number)).mean() < 0.1, number


def test_the_draw_is_that_of_the_cpu_path():
    """Crop, flip and ops are drawn from the same generator in the same order."""
    out, row = np.empty((PX, PX, 3), np.uint8), np.empty(row_bytes(PX), np.uint8)
    for number, data in enumerate(FOR_THE_DEVICE.values()):
        drawn = decode_crop(data, PX, SPEC, 9.0, rng(number), out)
        assert encode(data, PX, SPEC, 9.0, rng(number), row) == drawn


@pytest.mark.parametrize("damage", ["cut", "no end", "text", "empty"])
def test_damage_that_shows_in_the_file_is_found_by_the_worker(damage):
    whole = picture(200, 200)
    data = {
        "cut": whole[: len(whole) // 2],
        "no end": whole[:-2],
        "text": b"<html>404</html>",
        "empty": b"",
    }[damage]
    with pytest.raises(BrokenImage):
        rows_of([data])


def test_a_picture_of_another_size_than_its_head_names_the_row():
    rows = rows_of([picture(), picture()])
    heads = rows[:, : HEAD.itemsize].numpy().view(HEAD)
    heads[1, 0]["size"] = (91, 70)
    with pytest.raises(BrokenRow, match=r"\(70, 90\).*\(70, 91\)") as caught:
        decode_rows(rows, CPU)
    assert caught.value.row == 1


def test_what_the_device_refuses_is_decoded_by_pillow(monkeypatch):
    """One file that it refuses must cost neither its neighbours nor the step."""
    real = decode_device.decode_jpeg
    refused = picture(64, 64)

    def picky(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        if any(file.numpy().tobytes() == refused for file in files):
            raise RuntimeError("unsupported")
        return real(files, device)

    monkeypatch.setattr(decode_device, "decode_jpeg", picky)
    files = [picture(), refused, picture(50, 50)]
    for number, image in enumerate(decode_rows(rows_of(files), CPU).numpy()):
        assert np.abs(image.astype(int) - cropped(files[number], number)).mean() < 0.1


def broken_inside() -> bytes:
    """A JPEG whose quantization tables are gone, but not its head, size and end."""
    return picture().replace(b"\xff\xdb", b"\xff\xef")  # a marker that nobody reads


def test_an_image_that_nobody_can_decode_is_named_by_its_id():
    rows = rows_of([picture(), broken_inside()])
    ids = torch.tensor([41, 42])
    batch = MicroBatch(0, 0, rows, torch.zeros(2, 1, dtype=torch.int64), ids)
    with pytest.raises(Failure, match="id 42.*data_prep verify"):
        send_encoded(batch, CPU)


def test_a_batch_travels_as_files_or_as_pixels():
    labels, ids = torch.zeros(2, 1, dtype=torch.int64), torch.arange(2)
    rows = rows_of([picture(), picture(80, 60)])
    batch = MicroBatch(3, 1, rows, labels, ids)
    sent = send_encoded(batch, CPU)
    assert sent.images.shape == (2, PX, PX, 3) and sent[:2] == (3, 1)
    assert torch.equal(send_encoded(sent, CPU).images, sent.images)


def test_decoding_on_a_gpu_that_is_not_there_is_refused():
    class Nothing:
        wait_s = 0.0

        def steps(self, first_step: int) -> Any:
            return iter(())

        def close(self) -> None: ...

    with pytest.raises(Misuse, match="decode.*'gpu'.*'cpu'"):
        device_loader(Nothing(), CPU, "gpu")
    assert list(device_loader(Nothing(), CPU).steps(0)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_sends_files_gives_the_images_of_one_that_sends_pixels(shards, fake, workers):
    """Nothing else of a micro-batch changes: labels, ids and operations are the same."""

    def steps(decode: Literal["cpu", "gpu"]) -> list[MicroBatch]:
        index, order = shards.index(), Order(103, 3, lanes=16, window=8)
        plan = fake.plan(6, ((0, fake.settings(micro_batches=4)), (3, fake.settings(px=24))))
        spec = LoaderSpec(workers=workers, lanes=16, window=8, timeout_s=60, decode=decode)
        augment = AugmentSpec(device="gpu")
        loader = TrainLoader(index, order, plan, 32, 0, 1, augment, 3, spec)
        sent = [send_encoded(batch, CPU) for step in loader.steps(0) for batch in step]
        loader.close()
        return sent

    for one, other in zip(steps("cpu"), steps("gpu"), strict=True):
        assert one[:2] == other[:2] and torch.equal(one.labels, other.labels)
        assert torch.equal(one.ids, other.ids)
        assert one.ops is not None and other.ops is not None
        assert np.array_equal(one.ops, other.ops)
        difference = (one.images.int() - other.images.int()).abs().float()
        assert difference.max() <= 3 and difference.mean() < 0.1


def test_real_images_give_the_crops_of_the_cpu(real_images: Callable[[int], list[bytes]]):
    files = real_images(48)
    rows = rows_of(files, px=128)
    assert sum(holds_file(row) for row in rows) > 40
    for number, (data, image) in enumerate(zip(files, decode_rows(rows, CPU), strict=True)):
        difference = np.abs(image.numpy().astype(int) - cropped(data, number, px=128))
        assert difference.mean() < 0.1


@pytest.mark.gpu
def test_a_gpu_decodes_within_the_rounding_of_its_own_decoder():
    """nvJPEG's transforms and upsampling are not libjpeg's: smooth pictures differ by about 1."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    files = list(FOR_THE_DEVICE.values())
    images = decode_rows(rows_of(files), torch.device("cuda")).cpu().numpy().astype(int)
    for number, (data, image) in enumerate(zip(files, images, strict=True)):
        assert np.abs(image - cropped(data, number)).mean() < 2, list(FOR_THE_DEVICE)[number]


@pytest.fixture(scope="module")
def real_images(real_data) -> Callable[[int], list[bytes]]:
    """Return the first files of the sample of real images."""
    import tarfile

    def read(count: int) -> list[bytes]:
        with tarfile.open(real_data / "imagenet-sample.tar") as archive:
            members = (m for m in archive if m.name.lower().endswith((".jpg", ".jpeg")))
            return [archive.extractfile(next(members)).read() for _ in range(count)]  # type: ignore

    return read
