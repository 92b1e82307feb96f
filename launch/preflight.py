"""`python -m launch preflight CONFIG`: what would stop a job, found before it is queued.

Mistakes (config, data set, disk, a request that the cluster can never grant) end with exit code
2; what only makes a run less safe (cluster settings, MLflow not reachable) is a warning.
"""

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.cluster import NoAnswer, configuration
from launch.ranks import idle_note
from launch.requests import ROOT, request_of, script_for, site_settings
from launch.target import Training, training
from pipeline.jobs.prepare import num_classes
from pipeline.jobs.shards import check_shards
from pipeline.models.count import model_params
from pipeline.run.folder import DONE, MISUSE
from pipeline.spec import Failure, Misuse
from pipeline.tracking.settings import resolve_uri

MLFLOW_S = 5.0
BYTES_PER_WEIGHT = 16
"""fp32 weights, their average, and the optimizer's two moments (facts of pipeline.checkpoint)."""


@dataclass
class Findings:
    """What was found: mistakes end the preflight with 2, warnings do not."""

    good: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def show(self) -> int:
        """Print everything, mistakes last; returns the exit code."""
        for text in self.good:
            print(f"ok       {text}")
        for text in self.warnings:
            print(f"warning  {text}")
        for text in self.mistakes:
            print(f"mistake  {text}")
        return MISUSE if self.mistakes else DONE


def preflight(config: Path, overrides: Sequence[str], ranks: int | None) -> int:
    """Check a training and print its plan; returns 0, or 2 where something must be put right.

    Raises:
        Misuse: the config itself is wrong, so that nothing else can be checked.
    """
    config = config.absolute()
    os.chdir(ROOT)  # where the job runs: paths in configs and overrides count from here
    target = training(["train", str(config), *overrides])
    print(target.plan_text())
    found = Findings()
    script = script_for(config)
    found.good.append(f"config   {config}")
    check_data(target, found)
    check_disk(target, found)
    check_world(target, script, ranks, found)
    check_cluster(script, [str(config), *overrides], found)
    check_mlflow(target, found)
    return found.show()


def check_data(target: Training, found: Findings) -> None:
    """The shards must be there, whole and with both splits; a URL must give their manifest."""
    try:
        manifest = target.check_data()
        check_shards(
            target.recipe, manifest, lambda text: found.warnings.append(f"data     {text}")
        )
        found.good.append(f"data     {target.shards or target.recipe.data.path}")
    except (Misuse, Failure) as error:
        found.mistakes.append(f"field 'data': {error}")


def check_disk(target: Training, found: Findings) -> None:
    """Checkpoints must fit: those that are kept, the best one and the one being written."""
    recipe, folder = target.recipe, target.folder.path
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    weights = model_params(recipe.model, num_classes(recipe, target.found.manifest))
    need = weights * BYTES_PER_WEIGHT * (recipe.checkpoint.keep + 2)
    free = shutil.disk_usage(existing).free
    text = f"{need / 1e9:.1f} GB for checkpoints, {free / 1e9:.1f} GB free on {existing}"
    if not os.access(existing, os.W_OK | os.X_OK):
        found.mistakes.append(f"field 'runs': {existing} may not be written; choose another runs=")
    elif free < need:
        remedy = "make room, choose another runs=, or lower checkpoint.keep"
        found.mistakes.append(f"field 'runs': needs {text}: {remedy}")
    else:
        found.good.append(f"disk     {text}")


def check_world(target: Training, script: Path | None, ranks: int | None, found: Findings) -> None:
    """All ranks should have work: every stage's micro-batches divisible by their number."""
    if ranks is None and script is None:
        found.warnings.append(
            "ranks    not checked: no launch script has this name; give --ranks N"
        )
        return
    number = ranks or (request_of(script).ranks if script else 1)
    note = idle_note(number, target.micro_batches, target.recipe.model.bn_group)
    if note:
        found.warnings.append(f"ranks    {note}")
    else:
        found.good.append(f"ranks    {number}, all with work")


def check_cluster(script: Path | None, arguments: Sequence[str], found: Findings) -> None:
    """SLURM must be here and able to grant what the launch script asks for."""
    if shutil.which("sbatch") is None:
        remedy = "run it where SLURM is, or `python -m launch local --ranks N train CONFIG`"
        found.mistakes.append(f"PATH: no sbatch here; {remedy}")
        return
    try:
        facts = configuration()
    except NoAnswer as error:
        found.mistakes.append(f"SLURM: {error}")
        return
    found.warnings += [f"slurm    {text}" for text in doubts(facts)]
    if script is None:
        found.warnings.append("sbatch   not checked: no launch script has this config's name")
        return
    command = ["sbatch", "--test-only", str(script), *arguments[1:]]
    environment = {**os.environ, **site_settings(os.environ)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    except subprocess.TimeoutExpired:
        found.mistakes.append(f"{' '.join(command[:3])}: no answer in 60 s")
        return
    said = done.stderr.strip().replace("sbatch: ", "")
    if done.returncode:
        remedy = "ask for less (sbatch's options, or its #SBATCH lines), or see slurm/site.env"
        found.mistakes.append(f"{script}: the cluster refuses it: {said}; {remedy}")
    else:
        found.good.append(f"sbatch   {said}")


def doubts(facts: Mapping[str, str]) -> list[str]:
    """Name the cluster's settings under which a run loses more than it must."""
    lines = []
    if "preempt_send_user_signal" not in facts.get("SlurmctldParameters", "") and facts.get(
        "PreemptType", "preempt/none"
    ) not in ("preempt/none", "(null)"):
        lines.append(
            "SlurmctldParameters lacks preempt_send_user_signal: a preempted job gets only TERM "
            "and KillWait to save; keep checkpoint.every_steps small or ask for the setting"
        )
    wait_s = int(facts.get("KillWait", "30").split()[0])
    if wait_s < 30:
        lines.append(
            f"KillWait is {wait_s} s: after TERM ranks have no longer to save; `scancel` and "
            "`scontrol requeue` may lose steps since the last checkpoint"
        )
    if facts.get("JobRequeue", "1") == "0":
        lines.append("JobRequeue is 0: only jobs submitted with --requeue come back, ours do")
    return lines


def check_mlflow(target: Training, found: Findings) -> None:
    """The tracking store should answer; training goes on without it."""
    try:
        uri = resolve_uri(target.recipe.tracking)
    except Misuse as error:
        found.mistakes.append(str(error))
        return
    if not uri.startswith("http"):
        found.good.append(f"mlflow   {uri}")
        return
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=MLFLOW_S).close()
        found.good.append(f"mlflow   {uri}")
    except urllib.error.HTTPError as error:
        found.good.append(f"mlflow   {uri} (answers with {error.code})")
    except (OSError, ValueError) as error:
        found.warnings.append(
            f"mlflow   field 'tracking.uri': {uri} does not answer in {MLFLOW_S:.0f} s: {error}; "
            "the run keeps its figures and `python -m pipeline sync RUN` sends them later"
        )
