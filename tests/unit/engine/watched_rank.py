"""A rank that makes steps of nothing under a real watchdog, until a fault comes at step 3.

python watched_rank.py FOLDER RANK WORLD FAULT; the last rank has the fault, the others then wait
for it in their step, as in a collective.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from pipeline.engine.settings import WatchSpec
from pipeline.engine.watchdog import MARGIN_S, Watchdog
from pipeline.run.beats import Section
from pipeline.run.folder import RunFolder

DEADLINE_S = 4.0
SPEC = WatchSpec(
    setup_s=60, data_s=DEADLINE_S, step_s=DEADLINE_S, checkpoint_s=30.0, beat_every_s=0.2
)


def fail(fault: str, watch: Watchdog) -> None:
    """Have the fault, for good."""
    if fault == "sleep":
        watch.enter(Section.DATA, 3)
        time.sleep(60)
    elif fault == "behind":  # in the same section, before a collective that the others are in
        watch.count = lambda: 2
        watch.enter(Section.STEP, 3)
        time.sleep(60)
    elif fault == "stop":
        watch.enter(Section.STEP, 3)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "lock":
        watch.enter(Section.DATA, 3)
        ctypes.PyDLL(None).sleep(60)
    elif fault == "slow":  # within its own, longer deadline: no hang
        watch.enter(Section.CHECKPOINT, 2)
        time.sleep(DEADLINE_S + MARGIN_S + 3)


def main(folder: Path, rank: int, world: int, fault: str) -> None:
    """Make three steps of 50 ms each; the last one hangs."""
    with Watchdog(RunFolder(folder), 0, rank, world, SPEC) as watch:
        watch.count = lambda: 3
        for step in (1, 2):
            watch.enter(Section.DATA, step)
            watch.enter(Section.STEP, step)
            time.sleep(0.05)
        if rank == world - 1:
            fail(fault, watch)
        elif fault == "slow":
            watch.enter(Section.STEP, 3)
            time.sleep(DEADLINE_S + MARGIN_S + 3)
        else:
            watch.enter(Section.STEP, 3)
            threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
