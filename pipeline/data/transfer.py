"""Carries micro-batches to the GPU on a stream of its own, a step ahead of the one that computes.

Without it a copy would stand in the queue behind the step's kernels, and the GPU would wait for
every batch. The price is two more steps' pixels (uint8) on the device. The loader may use a batch's
memory on the host again once nothing refers to it, so it is kept until its copy is done.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.data.batches import MicroBatch
from pipeline.spec import Misuse

Send = Callable[[MicroBatch, torch.device], MicroBatch]
"""Brings a micro-batch to a device; it may return before the copy is done."""


class Loader(Protocol):
    """What is wrapped: the rank's micro-batches, step by step."""

    wait_s: float

    def steps(self, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield the micro-batches of each step from `first_step` on."""
        ...

    def close(self) -> None:
        """End whatever works for the loader."""
        ...


class DeviceLoader:
    """A loader whose micro-batches lie on `device`; on the CPU it hands them through as they are.

    `wait_s` is how long the last step had to wait for data; on a GPU that is the wait for the data
    of the step after it (the first step waits for two).
    """

    def __init__(self, loader: Loader, device: torch.device, send: Send | None = None) -> None:
        self.wait_s = 0.0
        self._waited = 0.0
        self._loader, self._device, self._send = loader, device, send or copy

    def steps(self, first_step: int) -> Iterator[list[MicroBatch]]:
        """Yield the loader's steps, and raise its errors."""
        self._waited = 0.0
        source = self._counted(self._loader.steps(first_step))
        if self._device.type != "cpu":
            source = sent_ahead(source, self._device, self._send)
        for batches in source:
            self.wait_s, self._waited = self._waited, 0.0
            yield batches
            del batches  # or this step's memory would be in use while the next one is asked for

    def close(self) -> None:
        """Close the loader."""
        self._loader.close()

    def _counted(self, steps: Iterator[list[MicroBatch]]) -> Iterator[list[MicroBatch]]:
        for batches in steps:
            self._waited += self._loader.wait_s
            yield batches
            del batches


def device_loader(
    loader: Loader,
    device: torch.device,
    decode: Literal["cpu", "gpu"] = "cpu",
    augment: Literal["cpu", "gpu"] = "cpu",
) -> DeviceLoader:
    """Return `loader` with its micro-batches on `device`; with decode "gpu" they hold files.

    `decode` is the recipe's loader.decode, `augment` its augment.device.

    Raises:
        Misuse: there is no GPU to decode or to augment on.
    """
    for field, value in (("loader.decode", decode), ("augment.device", augment)):
        if value == "gpu" and device.type != "cuda":
            raise Misuse(f"{field} is 'gpu', but this rank works on '{device}': set it to 'cpu'")
    if decode == "cpu":
        return DeviceLoader(loader, device)
    from pipeline.data.decode_device import send_encoded  # torchvision takes a second to import

    return DeviceLoader(loader, device, send_encoded)


class _Sent(NamedTuple):
    """A micro-batch on its way: what it is copied from, and the event of its arrival."""

    source: MicroBatch
    batch: MicroBatch
    done: Any


def sent_ahead(
    steps: Iterator[list[MicroBatch]], device: torch.device, send: Send
) -> Iterator[list[MicroBatch]]:
    """Yield each step's micro-batches on `device`, after those of the next step were sent.

    The work that the caller then puts on its current stream waits for the copies; the caller does
    not. A step's host memory is let go before the step after the next is asked for.
    """
    stream = torch.get_device_module(device).Stream(device)
    waiting: list[MicroBatch] | None = None
    for batches in steps:
        sent = [_send_on(stream, batch, device, send) for batch in batches]
        del batches
        if waiting is not None:
            yield waiting
        waiting = [_arrived(item, device) for item in sent]
        _finish(sent)
    if waiting is not None:
        yield waiting


def copy(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """Copy images and labels; without waiting where they lie in page-locked memory."""
    images = batch.images.to(device, non_blocking=True)
    return batch._replace(images=images, labels=batch.labels.to(device, non_blocking=True))


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy a small host tensor to `device` without waiting for what the device is doing."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _send_on(stream: Any, batch: MicroBatch, device: torch.device, send: Send) -> _Sent:
    module = torch.get_device_module(device)
    with module.stream(stream):
        sent = send(batch, device)
        done = module.Event()
        done.record(stream)
    return _Sent(batch, sent, done)


def _arrived(item: _Sent, device: torch.device) -> MicroBatch:
    """Make the current stream wait for the copy, and the memory wait for the current stream."""
    current = torch.get_device_module(device).current_stream(device)
    current.wait_event(item.done)
    for tensor in (item.batch.images, item.batch.labels):
        if tensor.is_cuda:  # made on another stream: not to be given away while this one reads it
            tensor.record_stream(current)
    return item.batch


def _finish(sent: list[_Sent]) -> None:
    """Wait for copies (they had a whole step to arrive) and let go of what they were made from."""
    for item in sent:
        item.done.synchronize()
    sent.clear()
