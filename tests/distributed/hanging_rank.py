"""`python -m pipeline ...` as a rank that hangs once in each attempt, in the middle of a step.

The environment's HANGS has a word for each attempt, as `sleep:1:12`: the fault, the rank, the step.
"""

import ctypes
import os
import signal
import sys
import time
from typing import Any

from pipeline.__main__ import main
from pipeline.engine.step import Stepper
from pipeline.run.folder import this_attempt

FAULTS = {
    "sleep": lambda: time.sleep(600),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "lock": lambda: ctypes.PyDLL(None).sleep(600),  # holds the interpreter's lock meanwhile
}


def spoil() -> None:
    """Put the fault of this attempt before the step that it names."""
    words = os.environ["HANGS"].split()[this_attempt() :]
    if not words:
        return
    fault, rank, step = words[0].split(":")
    run = Stepper.run

    def hang(self: Stepper, batches: Any, plan: Any, agree: Any = None) -> Any:
        if (self.world.rank, plan.step + 1) == (int(rank), int(step)):
            FAULTS[fault]()
        return run(self, batches, plan, agree)

    Stepper.run = hang  # type: ignore[method-assign]


if __name__ == "__main__":
    spoil()
    sys.exit(main(sys.argv[3:]))  # what stands before is `-m pipeline`
