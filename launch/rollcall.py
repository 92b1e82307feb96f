"""The roll call before the first step: does every rank start, meet rank 0's host and see the files?

The same srun as the training's starts one small process for each rank (launch/answer.py): it says
its host, whether it sees the data set and may write the run's folder, and whether it can connect
to rank 0's host; the first rank of each node also tells what the node is like.
"""

import json
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from launch import answer as program
from launch.answer import MARK, Answer, Question
from launch.cluster import tells_of_lost_node


class Absent(RuntimeError):
    """The roll call could not be held: srun failed."""


class LostRanks(Absent):
    """Ranks are silent or their node does not answer; other nodes would do."""


def call(
    srun: Sequence[str],
    python: Sequence[str],
    question: Question,
    num_ranks: int,
    timeout_s: float,
) -> list[Answer]:
    """Start the roll call with `srun` and return the answers, by rank.

    `question` lacks only its port: that of a door which is open meanwhile.

    Raises:
        LostRanks: ranks are silent, or srun says that a node is.
        Absent: srun failed otherwise; names what it said.
    """
    with socket.socket() as door:
        door.bind(("", 0))
        door.listen(1024)  # the kernel accepts for us; nobody needs to
        asked = replace(question, port=int(door.getsockname()[1]))
        program_file = str(Path(program.__file__).resolve())
        try:
            done = subprocess.run(
                [*srun, *python, program_file, json.dumps(asdict(asked))],
                capture_output=True,
                text=True,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as late:
            heard = read_answers(_text(late.stdout))
            raise LostRanks(
                f"only {len(heard)} ranks answered in {timeout_s:.0f} s; silent: rank "
                f"{_ranges(set(range(num_ranks)) - {answer.rank for answer in heard})}"
            ) from None
    answers = read_answers(done.stdout)
    if done.returncode:
        kind = LostRanks if tells_of_lost_node(done.stderr) else Absent
        raise kind(f"srun ended with {done.returncode}: {_end(done.stderr)}")
    return answers


def read_answers(text: str) -> list[Answer]:
    """Find the ranks' lines in srun's output (labels and other programs' lines may surround)."""
    lines = (line.partition(MARK)[2] for line in text.splitlines() if MARK in line)
    return sorted((Answer(**json.loads(line)) for line in lines), key=lambda answer: answer.rank)


def problems(answers: Sequence[Answer], num_ranks: int) -> list[str]:
    """Return what is wrong, each line naming ranks and hosts; nothing where all is well."""
    lines = []
    missing = set(range(num_ranks)) - {answer.rank for answer in answers}
    if missing:
        lines.append(f"rank {_ranges(missing)} of {num_ranks} did not answer")
    for field in ("data", "folder", "network", "address"):
        by_reason: dict[tuple[str, str], list[int]] = {}
        for answer in answers:
            if reason := getattr(answer, field):
                by_reason.setdefault((answer.host, reason), []).append(answer.rank)
        lines += [
            f"rank {_ranges(ranks)} on {host}: {reason}"
            for (host, reason), ranks in by_reason.items()
        ]
    return lines


def summary(answers: Sequence[Answer], num_ranks: int) -> str:
    """Return `32 of 32 ranks on 4 nodes answered`."""
    hosts = len({answer.host for answer in answers})
    return f"{len(answers)} of {num_ranks} ranks on {hosts} node{'s'[: hosts != 1]} answered"


def _ranges(numbers: Iterable[int]) -> str:
    """Write {0, 1, 2, 5} as `0-2, 5`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _end(text: str) -> str:
    return "; ".join(text.strip().splitlines()[-3:]) or "it said nothing"
