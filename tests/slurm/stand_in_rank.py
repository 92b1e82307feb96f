"""A rank that counts steps instead of training: `stand_in_rank.py FOLDER STEPS [FAULT]`.

It keeps the contract of `python -m pipeline train`: resumes from LATEST, commits each step, saves
on USR2 and TERM, writes the outcome file, exits with 0, 1, 2 or 75. Faults: `raise` at once,
`misuse`, `deaf` (never saves), `dies-on-NODE` (killed, on that node alone).
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.run.folder import Outcome, RunFolder, Status, this_attempt


def main(folder: RunFolder, steps: int, fault: str) -> int:
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    wish: list[int] = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, frame: wish.append(number))
    pids = folder.path / "pids"
    pids.mkdir(parents=True, exist_ok=True)
    (pids / f"{this_attempt()}.{rank}").write_text(str(os.getpid()))
    node = os.environ.get("SLURMD_NODENAME", "")
    (folder.path / "hosts").mkdir(exist_ok=True)
    (folder.path / "hosts" / f"{this_attempt()}.{rank}").write_text(node)
    step = max(folder.latest_step(), 0)
    _meet(pids)
    while step < steps:
        time.sleep(0.1)
        if rank == 0 and _peer_is_gone(pids):
            return _end(folder, rank, Outcome(Status.FAILED, step, "connection closed by peer"))
        if fault == f"dies-on-{node}":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "raise":
            return _end(folder, rank, Outcome(Status.FAILED, step, "ValueError: poison"))
        if fault == "misuse":
            return _end(folder, rank, Outcome(Status.MISUSE, step, "field 'x' is 1: use 2"))
        step += 1
        if rank == 0:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
            temporary = folder.checkpoints / "LATEST.tmp"
            temporary.write_text(f"step-{step:09d}\n")
            temporary.rename(folder.checkpoints / "LATEST")
        if wish and fault != "deaf":
            return _end(folder, rank, Outcome(Status.SAVED, step, f"signal {wish[0]}"))
    return _end(folder, rank, Outcome(Status.DONE, step))


def _meet(pids: Path) -> None:
    """Stand in for the rendezvous: no rank makes a step before all are there."""
    world = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    while len(list(pids.glob(f"{this_attempt()}.*"))) < world:
        time.sleep(0.02)


def _peer_is_gone(pids: Path) -> bool:
    """Stand in for the collective that fails when a rank is gone."""
    for path in pids.glob(f"{this_attempt()}.*"):
        try:
            os.kill(int(path.read_text() or os.getpid()), 0)
        except ProcessLookupError:
            return True
    return False


def _end(folder: RunFolder, rank: int, outcome: Outcome) -> int:
    """Rank 0 writes the outcome, the others wait for it: commit, barrier, exit."""
    if rank == 0:
        folder.write_outcome(this_attempt(), outcome)
    while folder.read_outcome(this_attempt()) is None:
        time.sleep(0.02)
    return outcome.exit_code


if __name__ == "__main__":
    arguments = [*sys.argv[1:], ""]
    sys.exit(main(RunFolder(Path(arguments[0])), int(arguments[1]), arguments[2]))
