"""The checks as a job begins: the roll call, what its nodes are like, the network between them.

They take seconds. Where ranks start slowly all else takes what is left of START_CHECKS_S (60 s);
only the wait for ranks that do not answer is longer (ROLL_CALL_S). What is slow is a warning.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.answer import Node, Question, existing
from launch.cluster import ANSWER_S, NoAnswer, configuration
from launch.limits import limit_s
from launch.network import network
from launch.preflight.disk import check_speed
from launch.preflight.findings import Findings
from launch.preflight.memory import check_memory
from launch.preflight.slurm import doubts, requeue_wait_s
from launch.preflight.versions import check_versions
from launch.ranks import rank_python
from launch.rollcall import call, problems, summary
from launch.steps import SrunLauncher
from launch.stop import say
from launch.target import Training
from pipeline.data.places import is_url
from pipeline.spec import Misuse
from pipeline.tracking.settings import resolve_uri

SETTINGS_S = 5.0
"""SLURM's settings are worth so much waiting, even where the time is over."""


def check_start(launcher: SrunLauncher, target: Training) -> None:
    """Let every rank answer, print the plan, look at nodes and network, refuse what cannot work.

    Raises:
        Misuse: the data set is missing, or a rank does not see it, or cannot write or connect.
        LostRanks: a node does not answer.
        Absent: srun cannot start ranks.
        Failure: the URL of the shards does not answer.
    """
    begun, most_s = time.monotonic(), limit_s("START_CHECKS_S", os.environ)
    folder, count = target.folder.path, launcher.capacity
    python = rank_python(sys.executable, os.environ)
    with _token(folder) as token:
        question = Question(
            launcher.address, 0, str(folder), str(target.shards or ""), token,
            tuple(_servers(target)), os.environ.get("NETWORK_INTERFACE", ""),
        )  # fmt: skip
        waits_s = limit_s("ROLL_CALL_S", os.environ)
        answers = call(launcher.srun(count), python, question, count, waits_s)
    called_s = time.monotonic() - begun
    say(f"{summary(answers, count)}; run folder {folder}")
    print(target.plan_text(), flush=True)
    target.check_data()
    if wrong := problems(answers, count):
        raise Misuse("roll call:\n  " + "\n  ".join(wrong))
    nodes = {answer.host: Node(**answer.node) for answer in answers if answer.node}
    found = Findings()
    check_nodes(nodes, target, (count, launcher.ranks_per_node), found)
    if called_s > most_s:
        found.warnings.append(
            f"start    ranks took {called_s:.0f} s to answer: a Python on the nodes' own disks or "
            "in a container starts sooner"
        )
    _check_settings(found, max(SETTINGS_S, begun + most_s - time.monotonic()))
    first = next((node.interface for node in list(nodes.values())[1:]), "")
    measured, doubtful = network(
        launcher, python, os.environ, first, begun + most_s - time.monotonic()
    )
    found.good += [measured] if measured else []
    found.warnings += [doubtful] if doubtful else []
    found.show(say)
    say(f"checks at the start took {time.monotonic() - begun:.1f} s")
    if found.mistakes:
        raise Misuse("checks at the start:\n  " + "\n  ".join(found.mistakes))


def check_nodes(
    nodes: dict[str, Node], target: Training, ranks: tuple[int, int], found: Findings
) -> None:
    """Judge what the nodes said; what is good is told of the worst of them, once."""
    each = []
    for host, node in nodes.items():
        own = Findings()
        check_speed(target, node, host, own)
        check_versions(node.versions, host, own)
        check_memory(target, node, host, ranks, own)
        own.warnings += [
            f"server   {text} from {host}: a node without internet needs a server of the site; "
            "figures that cannot be sent stay in the run (`python -m pipeline sync RUN`)"
            for text in node.unreachable
        ]
        each.append(own)
        found.mistakes += own.mistakes
    found.good += min((own.good for own in each), key=len, default=[])
    found.warnings += _once([own.warnings for own in each], list(nodes))
    if len({tuple(sorted(node.versions.items())) for node in nodes.values()}) > 1:
        told = "; ".join(f"{host}: {node.versions}" for host, node in nodes.items())
        found.warnings.append(
            f"version  the nodes do not have the same versions: {told}; use one environment that "
            "all nodes share, or one container"
        )


def _once(warnings: Sequence[list[str]], hosts: Sequence[str]) -> list[str]:
    """Return each warning of the nodes once, with how many more nodes have it."""
    counted: dict[str, tuple[str, int]] = {}
    for host, lines in zip(hosts, warnings, strict=True):
        for line in lines:
            kind = line.replace(host, "").split(":")[0].split(" is ")[0]
            kind = "".join(letter for letter in kind if not letter.isdigit())
            text, count = counted.get(kind, (line, 0))
            counted[kind] = (text, count + 1)
    return [
        text + (f" (and {count - 1} more nodes)" if count > 1 else "")
        for text, count in counted.values()
    ]


def _check_settings(found: Findings, most_s: float) -> None:
    try:
        facts = configuration(min(most_s, ANSWER_S))
    except NoAnswer as error:
        found.warnings.append(f"slurm    {error}")
        return
    found.warnings += [f"slurm    {text}" for text in doubts(facts)]
    found.good.append(f"slurm    a requeue costs about {requeue_wait_s(facts)} s of waiting")


def _servers(target: Training) -> list[str]:
    """Return the addresses that the first rank must reach."""
    try:
        uri = resolve_uri(target.recipe.tracking) if target.recipe.tracking.enabled else ""
    except Misuse:  # the ranks say it, with the field
        uri = ""
    addresses = [uri, target.recipe.data.path if is_url(target.recipe.data.path) else ""]
    return [address for address in addresses if address.startswith("http")]


@contextmanager
def _token(folder: Path) -> Iterator[str]:
    """Leave a file beside the run's folder while inside; empty where nothing can be written."""
    path = existing(folder) / f".roll-call-{socket.gethostname()}-{os.getpid()}"
    try:
        path.touch()
    except OSError:  # the ranks say it, with their hosts
        yield ""
        return
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)
