"""The sum that travels with each step."""

import math

import pytest
import torch

from pipeline.engine.pulse import Beat, Pulse
from pipeline.parallel.world import World

CPU = World(0, 1, torch.device("cpu"))


def test_what_is_sent_is_what_is_read_and_stays_until_the_next() -> None:
    pulse = Pulse(CPU)
    pulse.send(1, torch.tensor(0.5), False, 3)
    assert pulse.read() == Beat(1, 0.5, False, 3) == pulse.read()
    pulse.send(2, torch.tensor(0.25), True, 0)
    assert pulse.read() == Beat(2, 0.25, True, 0)


def test_reading_before_anything_was_sent_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="nothing was sent"):
        Pulse(CPU).read()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_bad(loss: float) -> None:
    pulse = Pulse(CPU)
    pulse.send(1, torch.tensor(loss), False, 0)
    assert pulse.read().is_bad
    pulse.send(2, torch.tensor(3e38), False, 0)
    assert not pulse.read().is_bad


@pytest.mark.gpu
def test_reading_does_not_wait_for_what_was_queued_after_sending() -> None:
    """Else the GPU would run dry in every step while the host waits for its backward pass."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    device = torch.device("cuda", torch.cuda.current_device())
    pulse, loss = Pulse(World(0, 1, device)), torch.tensor(0.5, device=device)
    done = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pulse.send(1, loss, True, 2)
        torch.cuda._sleep(2_000_000_000)  # cycles: about a second of work
        done.record()
        beat = pulse.read()
        assert not done.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert beat == Beat(1, 0.5, True, 2)
