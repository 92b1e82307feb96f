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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.chain import ChainSpec, read_chain
from launch.cluster import NoAnswer, ask
from launch.follow import follow
from launch.requests import ROOT, Request, minutes, site_settings
from pipeline.run.folder import DONE
from pipeline.spec import Misuse

DEFAULT_MINUTES = 60
SBATCH = {"time": "SBATCH_TIMELIMIT", "mem": "SBATCH_MEM_PER_NODE"}
"""The variables of sbatch that are not called like the option."""


@dataclass(frozen=True)
class Supervised:
    """What the job runs: it turns into the job's body and never returns."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        sys.stdout.flush()
        os.execv("/bin/bash", ["bash", str(ROOT / "slurm" / "job.sh"), *self.arguments])


@dataclass(frozen=True)
class Batch:
    """A job, or where `runs` has several an array of them, as it is submitted."""

    name: str
    text: str
    """What it runs, asks for and waits for, for people."""
    runs: tuple[Callable[[], None], ...]
    request: Request
    after: tuple[str, ...]
    """The names of the batches that must complete first, every element of them."""
    signal: str = "B:USR2@180"
    at_once: int = 0
    """Elements that may run at the same time; 0: all."""
    limit_min: int = DEFAULT_MINUTES
    """Where neither the request nor the site says a time."""


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
    batches = [
        Batch(job.name, describe(chain, index), (Supervised(job.run),), chain.request(index),
              chain.waits_for(index))
        for index, job in enumerate(chain.jobs)
    ]  # fmt: skip
    ids = submit_all(chain.name, batches)
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


def submit_all(title: str, batches: Sequence[Batch]) -> dict[str, str]:
    """Submit jobs and arrays in order and return {name: job id}; submitit's files go to
    runs/submitted/TITLE.

    Raises:
        Misuse: there is no SLURM here.
        NoAnswer: SLURM refused one; those submitted before are cancelled.
    """
    check_slurm()
    site = site_settings(os.environ)
    folder = private_folder(ROOT / "runs" / "submitted" / title)
    ids: dict[str, str] = {}
    for batch in batches:
        os.environ.update(site)
        for key in batch.request.values():  # sbatch would take it before what the script asks for
            os.environ.pop(SBATCH.get(key, f"SBATCH_{key.upper()}"), None)
        try:
            ids[batch.name] = _submit(title, batch, [ids[name] for name in batch.after], folder)
        except NoAnswer as error:
            for job_id in ids.values():
                ask(["scancel", job_id])
            raise NoAnswer(f"job '{batch.name}' was refused, nothing is queued: {error}") from None
        element = "_*" if len(batch.runs) > 1 else ""
        print(f"{ids[batch.name]}: {batch.text}")
        print(f"  log {folder}/{ids[batch.name]}{element}_0_log.out", flush=True)
    return ids


def _submit(title: str, batch: Batch, after: Sequence[str], folder: Path) -> str:
    """Submit one job or array; returns its id."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    # exec: the batch process itself is what `--signal=B:` reaches, not a shell before it.
    executor = SlurmExecutor(folder, python=f"exec {shlex.quote(sys.executable)}")
    executor.update_parameters(
        job_name=f"{title}-{batch.name}",
        array_parallelism=batch.at_once or len(batch.runs),
        **parameters(batch.request, after, batch.signal, batch.limit_min),
    )
    try:
        return executor.submit_array(batch.runs)[0].job_id.partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as error:
        raise NoAnswer(str(error).strip().splitlines()[-1]) from None


def parameters(
    request: Request,
    after: Sequence[str],
    signal: str = Batch.signal,
    limit_min: int = DEFAULT_MINUTES,
) -> dict[str, object]:
    """Return submitit's parameters for a job."""
    asked: dict[str, object] = dict(request.values())
    # submitit reckons with a number of nodes; sbatch gets the range.
    span = {"nodes": asked.pop("nodes")} if isinstance(request.nodes, str) else {}
    time_min = minutes(request.time) if request.time else limit_min
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
            "signal": signal,
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            **span,
        },
    }
