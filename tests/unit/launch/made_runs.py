"""Folders of runs as the ledger, the lease, the beats and the spool themselves write them."""

import socket
import time

from launch.ledger import Ledger
from launch.run_facts import read_facts
from launch.run_screen import screen
from launch.run_state import Judged, judge
from pipeline.run.beats import BEAT_EVERY_S, Beat, Section, write_beat
from pipeline.run.files import write_json
from pipeline.run.folder import RunFolder
from pipeline.run.hang import claim_hang, record, where
from pipeline.tracking.spool import Spool

GONE = f"{socket.gethostname()}-999999999-1700000000"
"""A local job whose process is not there any more."""
STATE = {"best_metric": 0.5, "best_step": 4, "bad_steps": [3], "windows": [], "bad_samples": 2}


def judged(run: RunFolder) -> Judged:
    return judge(read_facts(run.path))


def text_of(run: RunFolder) -> str:
    facts = read_facts(run.path)
    return screen(facts, judge(facts))


def end(run: RunFolder, status: str, job: str = GONE, reason: str = "", step: int = -1) -> None:
    """Make an attempt that came from `step` to `step`."""
    ledger = Ledger(run)
    ledger.end(ledger.begin(job, 0, "node1", step), status, step, reason)


def checkpoint(run: RunFolder, step: int) -> None:
    folder = run.checkpoints / f"step-{step:09d}"
    folder.mkdir(parents=True)
    write_json(folder / "state.json", STATE)
    (run.checkpoints / "LATEST").write_text(f"{folder.name}\n")


def beat(
    run: RunFolder,
    rank: int,
    age_s: float,
    section: Section = Section.STEP,
    every_s: float = BEAT_EVERY_S,
) -> None:
    now_s = time.time()
    place = (rank, f"node{rank}", 7, section, 120, now_s - 60)
    write_beat(run, Beat(*place, now_s - age_s, 0, every_s=every_s))


def hang(run: RunFolder, attempt: int, age_s: float) -> None:
    """Have rank 0 write a verdict on itself, so long ago."""
    found_s = time.time() - age_s
    finder = Beat(0, "node0", 7, Section.STEP, 120, found_s - 60, found_s, attempt)
    claim_hang(run, attempt, record(f"hang: {where(finder)}", finder, finder, [finder]), None)


def points(run: RunFolder) -> Spool:
    """Write six steps of ten, an evaluation, and leave the spool open."""
    spool = Spool(run.spool)
    spool.tags({"plan.steps": "10", "plan.stages": "2"})
    for step in range(1, 7):
        spool.metrics(step, {"train/loss": 1 / step, "speed/images_per_s": 1234.0,
                             "stage/index": 1.0, "stage/px": 32.0,
                             "data/bad_samples": 3.0, "guard/bad_steps": 1.0})  # fmt: skip
        time.sleep(0.01)
    spool.metrics(6, {"eval/top1": 0.75, "eval/top5": 0.875})
    return spool
