"""Micro-batches on their way to the device: what is sent when, how long memory is held, waits."""

import weakref
from collections.abc import Iterator

import pytest
import torch

from pipeline.data.augment import AugmentSpec
from pipeline.data.batches import MicroBatch
from pipeline.data.loader import TrainLoader
from pipeline.data.loading import LoaderSpec
from pipeline.data.order import Order
from pipeline.data.transfer import DeviceLoader, copy, device_loader, sent_ahead, upload
from pipeline.spec import Misuse

CPU = torch.device("cpu")


def batch(step: int, index: int = 0) -> MicroBatch:
    images = torch.full((2, 4, 4, 3), step * 10 + index, dtype=torch.uint8)
    return MicroBatch(step, index, images, torch.tensor([[step], [index]]), torch.tensor([0, 1]))


def cloned(one: MicroBatch, device: torch.device) -> MicroBatch:
    """A copy that is one on the CPU too."""
    return one._replace(images=one.images.to(device, copy=True))


class FakeLoader:
    """Makes steps of two micro-batches; waits `step` seconds for each, by its own account."""

    def __init__(self, num_steps: int = 5, fails_at: int | None = None) -> None:
        self.wait_s = 0.0
        self.num_steps, self.fails_at = num_steps, fails_at
        self.asked: list[int] = []
        self.closed = False

    def steps(self, first_step: int) -> Iterator[list[MicroBatch]]:
        for step in range(first_step, self.num_steps):
            self.asked.append(step)
            if step == self.fails_at:
                raise RuntimeError("the disk is gone")
            self.wait_s = float(step)
            yield [batch(step), batch(step, 1)]

    def close(self) -> None:
        self.closed = True


def test_every_step_arrives_once_in_order_and_unchanged() -> None:
    steps = list(sent_ahead(FakeLoader().steps(2), CPU, cloned))
    assert [[b[:2] for b in step] for step in steps] == [[(s, 0), (s, 1)] for s in (2, 3, 4)]
    for step in steps:
        for one in step:
            assert torch.equal(one.images, batch(*one[:2]).images)


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_short_streams_come_out_whole(num_steps: int) -> None:
    steps = sent_ahead(FakeLoader(num_steps).steps(0), CPU, cloned)
    assert [step[0].step for step in steps] == list(range(num_steps))


def test_a_step_is_sent_before_the_one_before_it_is_given_out() -> None:
    sent: list[int] = []

    def note(one: MicroBatch, device: torch.device) -> MicroBatch:
        sent.append(one.step)
        return copy(one, device)

    steps = sent_ahead(FakeLoader().steps(0), CPU, note)
    for given in range(5):
        assert next(steps)[0].step == given
        assert max(sent) == min(given + 1, 4), "exactly one step ahead"


def test_no_host_memory_is_held_when_the_next_step_is_asked_for() -> None:
    """Else workers would have nowhere to write, and a loader could wait for ever."""
    alive: list[list[int]] = []

    def steps() -> Iterator[list[MicroBatch]]:
        made: dict[int, weakref.ref[torch.Tensor]] = {}
        for step in range(5):
            alive.append([number for number, image in made.items() if image() is not None])
            one = batch(step)
            made[step] = weakref.ref(one.images)
            given = [one]
            del one
            yield given
            del given

    for given in sent_ahead(steps(), CPU, cloned):
        assert given[0].images.shape == (2, 4, 4, 3)
    assert alive == [[]] * 5


def test_an_error_ends_the_stream_at_once() -> None:
    """The attempt is over and starts again from its checkpoint: no step is doubled or skipped."""
    seen = []
    with pytest.raises(RuntimeError, match="disk is gone"):
        for step in sent_ahead(FakeLoader(fails_at=3).steps(0), CPU, cloned):
            seen.append(step[0].step)
    assert seen == [0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_real_loader_gives_the_same_bytes_a_step_ahead(shards, fake, workers: int) -> None:
    """Its slots are written again and again while steps are on their way."""

    def loader() -> TrainLoader:
        index = shards.index()
        order = Order(len(index), 3, lanes=16, window=8)
        plan = fake.plan(12, ((0, fake.settings(micro_batches=4)), (5, fake.settings(px=24))))
        spec = LoaderSpec(workers=workers, lanes=16, window=8, timeout_s=60)
        return TrainLoader(index, order, plan, 32, 0, 1, AugmentSpec(), 3, spec)

    direct, ahead = loader(), loader()
    expected = [cloned(one, CPU) for step in direct.steps(2) for one in step]
    direct.close()
    found = [one for step in sent_ahead(ahead.steps(2), CPU, cloned) for one in step]
    ahead.close()
    assert len(found) == 10 * 4
    for one, other in zip(expected, found, strict=True):
        assert one[:2] == other[:2] and torch.equal(one.ids, other.ids)
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_on_the_cpu_batches_are_handed_through_without_a_step_ahead() -> None:
    source = FakeLoader()
    loader = DeviceLoader(source, CPU)
    for number, step in enumerate(loader.steps(0)):
        assert source.asked == list(range(number + 1))
        assert loader.wait_s == number and step[0].step == number


def test_a_wait_is_charged_to_the_step_that_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step ahead, step k waits for the data of k + 1, the first one for two; none is lost."""
    loader = DeviceLoader(FakeLoader(), torch.device("meta"), cloned)
    monkeypatch.setattr(
        "pipeline.data.transfer.sent_ahead", lambda steps, _, send: sent_ahead(steps, CPU, send)
    )
    waits = [loader.wait_s for _ in loader.steps(1)]
    assert waits == [1 + 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("settings", "field"), [(("gpu", "cpu"), "loader.decode"), (("cpu", "gpu"), "augment.device")]
)
def test_work_for_a_gpu_that_is_not_there_is_refused(settings, field) -> None:
    expected = f"^{field} is 'gpu', but this rank works on 'cpu': set it to 'cpu'$"
    with pytest.raises(Misuse, match=expected):
        device_loader(FakeLoader(), CPU, *settings)
    assert len(list(device_loader(FakeLoader(), CPU, "cpu", "cpu").steps(0))) == 5


def test_closing_closes_the_loader() -> None:
    source = FakeLoader()
    loader = DeviceLoader(source, CPU)
    next(iter(loader.steps(0)))
    loader.close()
    assert source.closed


def test_labels_travel_and_ids_stay() -> None:
    one = batch(3)
    sent = copy(one, torch.device("meta"))
    assert sent.images.is_meta and sent.labels.is_meta and not sent.ids.is_meta


@pytest.mark.gpu
def test_on_a_gpu_the_bytes_are_the_same_though_memory_is_used_again() -> None:
    """The source overwrites its page-locked memory as soon as it may, as the workers do."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.device("cuda", torch.cuda.current_device())

    def steps() -> Iterator[list[MicroBatch]]:
        memory = torch.empty(64, 64, 64, 3, dtype=torch.uint8).pin_memory()
        for step in range(20):
            memory.fill_(step)
            yield [batch(step)._replace(images=memory)]

    busy = torch.randn(2048, 2048, device=device)
    sums = []
    for step in sent_ahead(steps(), device, copy):
        for _ in range(10):  # keep the compute stream behind the copies
            busy = (busy @ busy).clamp(-1, 1)
        sums.append(step[0].images.double().mean() + 0 * busy.sum())
    assert [int(value) for value in torch.stack(sums).tolist()] == list(range(20))


@pytest.mark.gpu
def test_an_upload_does_not_wait_for_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = upload(torch.arange(10), device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert values.tolist() == list(range(10))
