"""Nodes that SLURM shall not give a job again, and whether the cluster has others for it.

SLURM takes the list (`ExcNodeList`) for a job that waits, also right after a requeue, and refuses
it for one that runs. It keeps it over further requeues; `scontrol update JobId=ID ExcNodeList=`
empties it.
"""

from collections.abc import Collection, Mapping

from launch.cluster import ANSWER_S, ask, host_names

_USABLE = ("idle", "mix", "alloc", "comp", "plan")


def others_enough(
    facts: Mapping[str, str], nodes: Collection[str], need: int, timeout_s: float = ANSWER_S
) -> bool:
    """Return whether a job's partition has `need` nodes of the same kind beside these.

    `facts` are scontrol's of the job (launch.cluster.job_facts); those that it excludes already do
    not count. Its `NumNodes` falls while a job that was requeued gives its nodes back.

    Raises:
        NoAnswer: SLURM does not answer.
    """
    without = {*nodes, *_excluded(facts)}
    partition = facts.get("Partition", "")
    command = ["sinfo", "--noheader", "--Node", "--format=%N|%T|%G|%f", f"--partition={partition}"]
    rows = [line.strip().split("|") for line in ask(command, timeout_s).splitlines()]
    known = {row[0]: row[1:] for row in rows if len(row) == 4}
    kinds = [known[node][1:] for node in nodes if node in known]
    usable = [
        node
        for node, (state, *kind) in known.items()
        if node not in without
        and state.startswith(_USABLE)
        and not state.endswith("*")  # does not answer
        and (not kinds or kind in kinds)
    ]
    return len(usable) >= need


def with_excluded(facts: Mapping[str, str], nodes: Collection[str]) -> str:
    """Return these nodes and those that a job excludes already, as SLURM writes a list.

    Raises:
        NoAnswer: SLURM does not answer.
    """
    return ",".join(sorted({*_excluded(facts), *nodes}))


def exclude(job_id: str, names: str) -> None:
    """Have a job that was just requeued come back without the nodes of a list.

    Raises:
        NoAnswer: SLURM refuses, for instance as the job was not requeued.
    """
    update = ["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={names}"]
    # The requeue sends TERM to everything of the job, this command too.
    ask(["sh", "-c", 'trap "" TERM; exec "$@"', "sh", *update])


def _excluded(facts: Mapping[str, str]) -> list[str]:
    """Return the nodes that a job excludes already."""
    listed = facts.get("ExcNodeList", "(null)")
    return [] if listed == "(null)" else host_names(listed)
