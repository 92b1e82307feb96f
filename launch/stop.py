"""Stop requests: noted by a handler, passed on to the ranks by the loop that waits for them."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from launch.ranks import End, Step

SAVE_S = 150.0
"""Ranks may take so long to save; SLURM's signal comes 180 s before it kills (`--signal`)."""

POLL_S = 0.2


@dataclass
class StopRequest:
    """The signal that asked this job to stop, if any came, and whether it came again."""

    name: str = ""
    again: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note USR2, TERM and INT while inside."""
    stop = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        # SLURM sends TERM after USR2 while the ranks still save; only a person repeats Ctrl-C.
        stop.again = stop.again or (stop.name == name == "SIGINT")
        stop.name = stop.name or name

    numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(step: Step, stop: StopRequest) -> End:
    """Wait for the ranks; on a stop request have them save, and end those that take too long."""
    deadline: float | None = None
    while (end := step.poll()) is None:
        if stop.name and deadline is None:
            say(f"{stop.name} came: the ranks save and end")
            step.forward()
            deadline = time.monotonic() + float(os.environ.get("SAVE_S", SAVE_S))
        if deadline is not None and (stop.again or time.monotonic() > deadline):
            say("asked again: ends now" if stop.again else "the ranks did not end in time")
            step.kill()
            deadline = float("inf")
            stop.again = False
        time.sleep(POLL_S)
    return end


def say(text: str) -> None:
    """Print one line of the supervisor's own."""
    print(f"supervise: {text}", flush=True)
