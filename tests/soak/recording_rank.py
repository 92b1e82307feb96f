"""A rank that notes which samples each step was shown: RANK_PREFIX='python THIS FOLDER'.

It runs the command behind it unchanged, but for one line in FOLDER for each micro-batch.
"""

import json
import os
import runpy
import sys
from pathlib import Path


def record_ids(folder: Path) -> None:
    """Have every training step write the sample ids of its micro-batches first."""
    from pipeline.data.batches import MicroBatch
    from pipeline.engine.step import Agree, Stepper
    from pipeline.plan.plan import StepPlan

    folder.mkdir(parents=True, exist_ok=True)
    name = f"{os.environ['PIPELINE_ATTEMPT']}-{os.getpid()}.jsonl"
    file = open(folder / name, "a", 1)  # noqa: SIM115 - as long as the process
    run = Stepper.run

    def recorded(
        self: Stepper, batches: list[MicroBatch], plan: StepPlan, agree: Agree | None = None
    ) -> object:
        for batch in batches:
            file.write(json.dumps([batch.step, batch.index, batch.ids.tolist()]) + "\n")
        return run(self, batches, plan, agree)

    Stepper.run = recorded  # type: ignore[assignment, method-assign]


def main(arguments: list[str]) -> None:
    """Become the command, or run it here where it is a training."""
    folder, python, *rest = arguments
    if rest[:3] != ["-m", "pipeline", "train"]:
        os.execvp(python, [python, *rest])
    sys.path[0] = str(Path.cwd())
    record_ids(Path(folder))
    sys.argv = ["pipeline", *rest[2:]]
    runpy.run_module("pipeline", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
