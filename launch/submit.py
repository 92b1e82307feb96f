"""`python -m launch submit CHAIN.yaml | CONFIG...`: queue jobs that wait for each other.

submitit writes the batch script and calls sbatch, no more: the function that it runs in the job
becomes slurm/job.sh (exec), so its signal handlers and its way to requeue are gone before the
first step, and the supervisor owns the job. States come from scontrol, as submitit's need an
accounting database.
"""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.chain import ChainSpec, read_chain
from launch.cluster import NoAnswer, ask, job_facts
from launch.requests import ROOT, Request, minutes, site_settings
from pipeline.run.folder import DONE, FAILED, MISUSE
from pipeline.spec import Misuse

LOOK_S = 2.0
SILENT_S = 600.0
"""A controller may be restarted while jobs run; longer than this it is gone."""

DEFAULT_MINUTES = 60
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE",
         "BOOT_FAIL")  # fmt: skip


@dataclass(frozen=True)
class Supervised:
    """What the job runs: it turns into the job's body and never returns."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        sys.stdout.flush()
        os.execv("/bin/bash", ["bash", str(ROOT / "slurm" / "job.sh"), *self.arguments])


def submit(files: Sequence[Path], dry_run: bool, wait: bool) -> int:
    """Submit a chain; with `wait` follow it to its end and return 0 only if all jobs completed.

    Raises:
        Misuse: a file is wrong, or there is no SLURM here.
        NoAnswer: SLURM refused a job; those before it are cancelled.
    """
    files = [path.absolute() for path in files]
    os.chdir(ROOT)  # where the jobs run: paths inside a chain count from here
    chain = read_chain(files)
    if dry_run:
        for index in range(len(chain.jobs)):
            print(describe(chain, index))
        return DONE
    check_slurm()
    os.environ.update(site_settings(os.environ))
    folder = private_folder(ROOT / "runs" / "submitted" / chain.name)
    ids = submit_all(chain, folder)
    return follow(ids) if wait else DONE


def describe(chain: ChainSpec, index: int) -> str:
    """Return one job as a line: what it asks for, what it waits for, what it runs."""
    job = chain.jobs[index]
    asks = " ".join(f"{key}={value}" for key, value in chain.request(index).values().items())
    after = ", ".join(chain.waits_for(index)) or "nothing"
    return f"{chain.name}-{job.name}: {shlex.join(job.run)}\n  waits for {after}; asks for {asks}"


def check_slurm() -> None:
    """Refuse to go on where there is no SLURM that answers.

    Raises:
        Misuse: says what to run instead.
    """
    instead = "; without SLURM: `python -m launch local --ranks N train CONFIG`"
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise Misuse(f"PATH: no sbatch and srun found, so SLURM is not installed here{instead}")
    try:
        ask(["scontrol", "ping"], timeout_s=10.0)
    except NoAnswer as error:
        raise Misuse(f"SLURM does not answer: {error}{instead}") from None


def private_folder(folder: Path) -> Path:
    """Make the folder for submitit's files, open to its owner alone: a job runs what lies there.

    Raises:
        Misuse: it belongs to somebody else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise Misuse(f"{folder}: belongs to another user; remove it or give the chain another name")
    folder.chmod(0o700)
    return folder


def submit_all(chain: ChainSpec, folder: Path) -> dict[str, str]:
    """Submit the jobs in order and return {name: job id}.

    Raises:
        NoAnswer: SLURM refused one; those submitted before are cancelled.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    ids: dict[str, str] = {}
    for index, job in enumerate(chain.jobs):
        # exec: the batch process itself is what `--signal=B:` reaches, not a shell before it.
        executor = SlurmExecutor(folder, python=f"exec {shlex.quote(sys.executable)}")
        after = [ids[name] for name in chain.waits_for(index)]
        executor.update_parameters(
            job_name=f"{chain.name}-{job.name}",
            **parameters(chain.request(index), after),
        )
        try:
            ids[job.name] = executor.submit(Supervised(job.run)).job_id
        except (FailedJobError, FailedSubmissionError) as error:
            for job_id in ids.values():
                ask(["scancel", job_id])
            said = str(error).strip().splitlines()[-1]
            raise NoAnswer(f"job '{job.name}' was refused, nothing is queued: {said}") from None
        print(f"{ids[job.name]}: {describe(chain, index)}")
        print(f"  log {folder}/{ids[job.name]}_0_log.out", flush=True)
    return ids


def parameters(request: Request, after: Sequence[str]) -> dict[str, object]:
    """Return submitit's parameters for a job."""
    asked: dict[str, object] = dict(request.values())
    time_min = minutes(request.time) if request.time else DEFAULT_MINUTES
    dependency = {"dependency": "afterok:" + ":".join(after)} if after else {}
    return {
        **asked,
        **dependency,
        "time": time_min,
        "use_srun": False,
        "stderr_to_stdout": True,
        "wckey": None,
        "setup": [f"cd {shlex.quote(str(ROOT))}"],
        "additional_parameters": {
            "signal": "B:USR2@180",
            "requeue": True,
            "kill-on-invalid-dep": "yes",
        },
    }


def follow(ids: Mapping[str, str], look_s: float = LOOK_S) -> int:
    """Print each change of a job's state until all have ended; 0 where all completed.

    Raises:
        NoAnswer: SLURM is silent for long.
    """
    seen: dict[str, str] = {}
    codes: dict[str, int] = {}
    heard_s = time.monotonic()
    while len(codes) < len(ids):
        time.sleep(look_s if seen else 0)
        for name, job_id in ids.items():
            try:
                facts = job_facts(job_id)
            except NoAnswer:
                if time.monotonic() - heard_s > SILENT_S:
                    raise
                continue
            heard_s = time.monotonic()
            line = _state(facts)
            if seen.get(name) != line:
                print(f"{time.strftime('%H:%M:%S')} {name} ({job_id}): {line}", flush=True)
                seen[name] = line
            elif facts["JobState"] in FINAL:  # seen twice: no requeue in between
                codes[name] = _code(facts)
    return max(codes.values(), default=DONE)


def _state(facts: Mapping[str, str]) -> str:
    state = facts["JobState"]
    if state == "PENDING":
        return f"{state} ({facts.get('Reason', '')})"
    if state == "CANCELLED" and facts.get("Reason") == "DependencyNeverSatisfied":
        return f"{state} (a job before it failed)"
    return state if state in ("RUNNING", "COMPLETED") else f"{state} exit {facts['ExitCode']}"


def _code(facts: Mapping[str, str]) -> int:
    if facts["JobState"] == "COMPLETED":
        return DONE
    return MISUSE if facts.get("ExitCode") == "2:0" else FAILED
