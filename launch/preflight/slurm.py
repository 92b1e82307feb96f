"""SLURM: could it ever grant the request, and do its settings leave a job the time to save?"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.cluster import NoAnswer, configuration, partition_facts
from launch.preflight.findings import Findings
from launch.requests import Request, minutes, request_of, site_settings

SAVE_LEAST_S = 30
"""A checkpoint of the largest model is on a slow disk by then."""
NOTICED_S = 600
"""A node that is lost for longer without a word costs more than the whole restart."""


def check_cluster(script: Path | None, arguments: Sequence[str], found: Findings) -> None:
    """SLURM must be here and able to grant what the launch script asks for."""
    if shutil.which("sbatch") is None:
        remedy = "run it where SLURM is, or `python -m launch local --ranks N train CONFIG`"
        found.mistakes.append(f"PATH: no sbatch here; {remedy}")
        return
    environment = {**os.environ, **site_settings(os.environ)}
    request = request_of(script) if script else Request()
    try:
        found.warnings += [f"slurm    {text}" for text in doubts(configuration())]
        name = environment.get("SBATCH_PARTITION") or request.partition or ""
        check_partition(partition_facts(name), request, environment, found)
    except NoAnswer as error:
        found.mistakes.append(f"SLURM: {error}")
        return
    if script is None:
        found.warnings.append("sbatch   not checked: no launch script has this config's name")
        return
    command = ["sbatch", "--test-only", str(script), *arguments[1:]]
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
    wait_s = _seconds(facts.get("KillWait", "30"))
    if wait_s < SAVE_LEAST_S:
        lines.append(
            f"KillWait is {wait_s} s: after TERM ranks have no longer to save; `scancel` and "
            "`scontrol requeue` may lose steps since the last checkpoint; ask for 30 s"
        )
    if facts.get("JobRequeue", "1") == "0":
        lines.append("JobRequeue is 0: only jobs submitted with --requeue come back, ours do")
    noticed_s = _seconds(facts.get("SlurmdTimeout", "300"))
    if noticed_s == 0 or noticed_s > NOTICED_S:
        lines.append(
            f"SlurmdTimeout is {noticed_s} s: a node that is lost is noticed "
            f"{'never' if noticed_s == 0 else 'late'} and the job waits for it; ask for 300 s"
        )
    return lines


def requeue_wait_s(facts: Mapping[str, str]) -> int:
    """Return how long SLURM holds a requeued job back: until its last credential has expired."""
    match = re.search(r"cred_expire=(\d+)", facts.get("AuthInfo", ""))
    return int(match[1] if match else 120) + 5


def check_partition(
    facts: Mapping[str, str], request: Request, env: Mapping[str, str], found: Findings
) -> None:
    """The partition must allow the time asked for, and should give a preempted job time to save.

    A job that asks for more than MaxTime is taken and waits for ever, unless EnforcePartLimits.
    """
    name = facts.get("PartitionName", "")
    asked = name and (env.get("SBATCH_TIMELIMIT") or request.time)
    most = facts.get("MaxTime", "UNLIMITED")
    if asked and most != "UNLIMITED" and minutes(asked) > minutes(most):
        found.mistakes.append(
            f"--time={asked}: partition {name} allows MaxTime={most}: ask for less (the job saves "
            "before its limit and goes back into the queue), or choose another partition"
        )
    elif asked:
        found.good.append(f"time     {asked} asked for, partition {name} allows {most}")
    grace = facts.get("GraceTime", "0")
    is_preempted = facts.get("PreemptMode", "OFF") not in ("OFF", "(null)")
    if is_preempted and grace.isdigit() and int(grace) < SAVE_LEAST_S:
        found.warnings.append(
            f"slurm    GraceTime of partition {name} is {grace} s: a preempted job has no longer "
            "to save before TERM; ask for 30 s or more, or choose another partition"
        )


def _seconds(text: str) -> int:
    """Return the seconds of `300 sec`; what is no number counts as the default 300."""
    word = text.split()[0] if text.split() else ""
    return int(word) if word.isdigit() else 300
