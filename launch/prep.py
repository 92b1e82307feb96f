"""`python -m launch submit prep -- SOURCE OUT [build options]`: shards, built by arrays of jobs.

    list -> check, elements 0..K-1 -> arrange -> write, elements 0..K-1 -> finish

Each is `python -m data_prep build SOURCE OUT ... --stage NAME`, and each waits until all elements
before it have completed. An element that is preempted or loses its node is requeued and goes on
from what it finished; one that fails stops the chain, and the same command goes on from there.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.follow import follow
from launch.ranks import rank_python
from launch.requests import NAME, ROOT, Request, site_environment
from launch.submit import Batch, submit_all
from pipeline.run.folder import DONE
from pipeline.spec import Misuse

STAGES = ("list", "check", "arrange", "write", "finish")
SHARED = ("check", "write")
"""Stages whose work is divided among the elements of an array."""

OWN = ("--stage", "--element", "--workers")
LIMIT_MIN = 24 * 60
CHECK_S = 300.0
NO_SIGNAL = "B:CONT@1"
"""submitit always asks for a signal; this one says nothing to a process that runs."""


@dataclass(frozen=True)
class Prep:
    """A build as jobs: what is built, by how many elements, and what each asks SLURM for."""

    words: tuple[str, ...]
    """SOURCE OUT and the options of `data_prep build`; paths count from `folder`."""
    folder: Path
    elements: int
    request: Request
    at_once: int = 0
    """Elements that may run at the same time; 0: all."""


@dataclass(frozen=True)
class Element:
    """What one job runs: it turns into the build's stage and never returns."""

    stage: str
    words: tuple[str, ...]
    folder: str

    def __call__(self) -> None:
        env = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **site_environment(os.environ)}
        cpus = env.get("SLURM_CPUS_PER_TASK", "1")
        command = build_command([*self.words, "--workers", cpus], env)
        if site_args := env.get("SRUN_ARGS", "").split():
            # A container that srun starts (pyxis); SLURM 22.05 and newer wants the cores repeated.
            command = ["srun", "--ntasks=1", f"--cpus-per-task={cpus}", *site_args, *command]
        print(f"{self.stage}: {shlex.join(command)}", flush=True)
        os.chdir(self.folder)
        os.execvpe(command[0], command, with_root(env))


def submit_prep(prep: Prep, dry_run: bool, wait: bool) -> int:
    """Submit the jobs; with `wait` follow them to their end and return 0 only if all completed.

    Raises:
        Misuse: the source or an option is wrong, or there is no SLURM here.
        NoAnswer: SLURM refused a job; those before it are cancelled.
    """
    title = title_of(prep)
    batches = batches_of(prep)
    check_build(prep)
    if dry_run:
        for batch in batches:
            print(f"{title}-{batch.name}: {batch.text}")
        return DONE
    os.chdir(ROOT)
    code = DONE
    ids = submit_all(title, batches)
    if wait and (code := follow(ids)) != DONE:
        print("what is finished is kept: the same command goes on from there", flush=True)
    return code


def prep_of(words: Sequence[str], elements: int, at_once: int, asked: Mapping[str, object]) -> Prep:
    """Return the build that a command line asks for; `asked` has the fields of a Request.

    Raises:
        Misuse: SOURCE or OUT is missing, an option is the launcher's own, or SLURM is asked for
            something of another form than sbatch takes.
    """
    if len(words) < 2 or any(word.startswith("-") for word in words[:2]):
        raise Misuse(
            f"the build is {shlex.join(words) or 'missing'}: write `-- SOURCE OUT` and then its "
            "options, as for `python -m data_prep build`"
        )
    source, out = (Path(word).absolute() for word in words[:2])
    if "--dry-run" in words:
        raise Misuse("--dry-run: write it before the --, as an option of `submit prep`")
    for word in words:
        option = word.partition("=")[0]
        if option in OWN:
            raise Misuse(
                f"{option}: every job gets its own; leave it out and use --elements and --cpus"
            )
    if not source.exists():
        raise Misuse(f"{source}: no such folder or archive; give the images to build from")
    given = {key: value for key, value in asked.items() if value is not None}
    request = Request.parse({"nodes": 1, "ntasks_per_node": 1, **given}, "command line")
    return Prep((str(source), str(out), *words[2:]), Path.cwd(), elements, request, at_once)


def batches_of(prep: Prep) -> list[Batch]:
    """Return the five jobs; the second and the fourth are arrays."""
    batches: list[Batch] = []
    for stage in STAGES:
        elements = prep.elements if stage in SHARED else 1
        runs = tuple(_element(prep, stage, number, elements) for number in range(elements))
        after = tuple(batch.name for batch in batches[-1:])
        text = _text(prep, stage, elements, after)
        how = NO_SIGNAL, prep.at_once, LIMIT_MIN
        batches.append(Batch(stage, text, runs, prep.request, after, *how))
    return batches


def title_of(prep: Prep) -> str:
    """Return what the jobs are called: after OUT, in the letters that a job's name may have."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", Path(prep.words[1]).name)[:58]
    title = f"prep-{name}"
    assert re.fullmatch(NAME, title)
    return title


def check_build(prep: Prep) -> None:
    """Let `data_prep` itself read the options; nothing is written.

    Raises:
        Misuse: with its words.
    """
    env = with_root(site_environment(os.environ))
    command = build_command([*prep.words, "--dry-run"], env)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CHECK_S, cwd=prep.folder, env=env
        )
    except FileNotFoundError:
        raise Misuse(
            f"{command[0]}: not found; correct RANK_PREFIX or RANK_PYTHON in slurm/site.env"
        ) from None
    except subprocess.TimeoutExpired:
        raise Misuse(
            f"{shlex.join(command)}: no answer in {CHECK_S:.0f} s; try it by hand"
        ) from None
    if done.returncode != DONE:
        said = (done.stderr or done.stdout).strip()
        raise Misuse(said.removeprefix("data_prep: ") or shlex.join(command))


def build_command(words: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Return the command of a build, in the site's container where there is one.

    With -P nothing in the folder where it runs is taken for a module.
    """
    return [*rank_python(sys.executable, env), "-P", "-m", "data_prep", "build", *words]


def with_root(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env`, in which Python finds this checkout from any folder."""
    path = [str(ROOT), *filter(None, [env.get("PYTHONPATH", "")])]
    return {**env, "PYTHONPATH": os.pathsep.join(path)}


def _element(prep: Prep, stage: str, number: int, elements: int) -> Element:
    words = (*prep.words, "--stage", stage)
    if stage in SHARED:
        words = (*words, "--element", f"{number}/{elements}")
    return Element(stage, words, str(prep.folder))


def _text(prep: Prep, stage: str, elements: int, after: tuple[str, ...]) -> str:
    words = [*prep.words, "--stage", stage]
    words += ["--element", f"K/{elements}"] if stage in SHARED else []
    asks = " ".join(f"{key}={value}" for key, value in prep.request.values().items())
    array = f" for each K of 0 to {elements - 1}" if stage in SHARED else ""
    limit = f", {prep.at_once} at once" if prep.at_once and stage in SHARED else ""
    return (
        f"data_prep build {shlex.join(words)}{array}{limit}\n"
        f"  waits for {', '.join(after) or 'nothing'}; asks for {asks}"
    )
