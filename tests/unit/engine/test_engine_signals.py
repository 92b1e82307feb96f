"""Stop signals are noted, not acted on, and the old handlers come back."""

import os
import signal

import pytest

from pipeline.engine.signals import STOP_SIGNALS, stop_wish


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_is_noted_with_its_name(number: signal.Signals) -> None:
    with stop_wish() as wish:
        assert wish.reason == ""
        os.kill(os.getpid(), number)
        assert wish.reason == number.name


def test_the_first_signal_stays_the_reason() -> None:
    with stop_wish() as wish:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert wish.reason == "SIGUSR2"


def test_the_handlers_before_come_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with stop_wish():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
