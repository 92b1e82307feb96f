"""Stop requests: noted by a handler, passed on to the ranks by the loop that waits for them."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from launch.limits import limit_s
from launch.ranks import End, Step

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
            deadline = time.monotonic() + limit_s("SAVE_S", os.environ)
        if deadline is not None and (stop.again or time.monotonic() > deadline):
            say("asked again: ends now" if stop.again else "the ranks did not end in time")
            step.kill()
            deadline = float("inf")
            stop.again = False
        time.sleep(POLL_S)
    return end


def say(text: str) -> None:
    """Print one line of the supervisor's own; a disk too full for the log ends no job."""
    with suppress(OSError):
        print(f"supervise: {text}", flush=True)
