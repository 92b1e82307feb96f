"""The supervisor around stand-in ranks, as a batch job: `stand_in_job.py FOLDER STEPS [FAULT]`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from launch.attempts import Job, Work, run_attempts  # noqa: E402
from launch.steps import SrunLauncher, allocation_from  # noqa: E402
from launch.stop import stop_requests  # noqa: E402
from pipeline.run.folder import RunFolder  # noqa: E402

if __name__ == "__main__":
    allocation = allocation_from(os.environ)
    launcher = SrunLauncher(allocation, os.environ)
    command = [sys.executable, str(HERE / "stand_in_rank.py"), *sys.argv[1:]]
    job = Job(allocation.job, allocation.restart, in_slurm=True, num_nodes=allocation.num_nodes)
    with stop_requests() as stop:
        work = Work(command, launcher.capacity, RunFolder(Path(sys.argv[1])))
        code = run_attempts(launcher, work, job, stop)
    sys.exit(code)
