"""Where things are in a run's folder, and how an attempt at the run says how it ended.

runs/NAME/recipe.yaml, data.json, plan.txt   the resolved recipe (a resume with another one is
                            refused), the digest of the images, what `plan` printed
          checkpoints/      step-000012000/ ... and LATEST
          spool/            tracking events that wait for the sender
          attempts/         ledger.jsonl, nodes.json (strikes), and of each attempt .claim, .json
                            (its outcome), .cause.json; beats/, pace.json, hang.json, stacks/
          package/, evaluation.json   what is registered, and metrics of the final weights
          lease.json        the one writer; .beat-7 and .lock beside it
          faults/           those on purpose that were met
"""

import os
import re
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.run.files import read_json, write_json
from pipeline.run.host import node_name

_STEP = re.compile(r"step-\d+", re.ASCII)

DONE, FAILED, MISUSE, SAVED = 0, 1, 2, 75
"""Exit codes: done; failed; wrong use; saved and wants to be run again (EX_TEMPFAIL)."""


class Status(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    FAILED = "failed"
    MISUSE = "misuse"
    SAVED = "saved"


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt, as rank 0 saw it; the supervisor decides from this, not from srun."""

    status: Status
    step: int
    reason: str = ""

    @property
    def exit_code(self) -> int:
        """Return the process exit code that goes with the status."""
        return {"done": DONE, "failed": FAILED, "misuse": MISUSE, "saved": SAVED}[self.status]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def package(self) -> Path:
        return self.path / "package"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def lease(self) -> Path:
        return self.path / "lease.json"

    def outcome_file(self, attempt: int) -> Path:
        """Return the file in which attempt `attempt` (0, 1, ...) tells how it ended."""
        return self.path / "attempts" / f"attempt-{attempt:04d}.json"

    def write_outcome(self, attempt: int, outcome: Outcome) -> None:
        """Record how `attempt` ended."""
        self.outcome_file(attempt).parent.mkdir(parents=True, exist_ok=True)
        values = {"status": outcome.status.value, "step": outcome.step, "reason": outcome.reason}
        write_json(self.outcome_file(attempt), {**values, "time_s": time.time()})

    def write_rank_error(self, attempt: int, reason: str, host: str = "") -> None:
        """Note why a rank failed; the first note stays, as the others follow from it.

        `host` is where the cause lies, by default here.
        """
        path = self.outcome_file(attempt).with_suffix(".cause.json")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            host = host or node_name()
            write_json(path, {"reason": reason, "host": host, "time_s": time.time()})

    def read_rank_error(self, attempt: int) -> str:
        """Return what a rank other than 0 noted in `write_rank_error`, empty where none did."""
        values = read_json(self.outcome_file(attempt).with_suffix(".cause.json"))
        return f"{values['host']}: {values['reason']}" if isinstance(values, dict) else ""

    def read_outcome(self, attempt: int) -> Outcome | None:
        """Return how `attempt` ended; None while it runs or where it was killed."""
        values = read_json(self.outcome_file(attempt))
        if not isinstance(values, dict):
            return None
        return Outcome(Status(values["status"]), int(values["step"]), str(values["reason"]))

    def latest_step(self) -> int:
        """Return the step of the newest committed checkpoint, -1 where there is none.

        LATEST tells; where it is damaged, the folders do.
        """
        latest = self.checkpoints / "LATEST"
        if not latest.is_file():
            return -1
        names = [latest.read_text(errors="replace").strip()]
        if not _STEP.fullmatch(names[0]):
            names = [path.name for path in self.checkpoints.iterdir() if _STEP.fullmatch(path.name)]
        return max((int(name.removeprefix("step-")) for name in names), default=-1)


def this_attempt() -> int:
    """Return the attempt number that the supervisor gave this process (0 without one)."""
    return int(os.environ.get("PIPELINE_ATTEMPT", "0"))
