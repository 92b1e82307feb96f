"""Signals as flags: a handler only notes the wish to stop; the loop agrees on it between steps.

A handler must not save or talk to other ranks: it may run in the middle of a step, and on some
ranks before others. SIGUSR2 and SIGTERM mean "save and end"; SIGINT means the same for a person.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


@dataclass
class StopWish:
    """Whether this process was asked to stop, and by which signal."""

    reason: str = ""


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Note stop signals while inside; the handlers that were there come back afterwards."""
    wish = StopWish()

    def note(number: int, frame: FrameType | None) -> None:
        wish.reason = wish.reason or signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
