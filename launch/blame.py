"""Which nodes ended an attempt, as far as its reason tells; none where no node is at fault.

The reason holds, in this order, what the failing rank noted (`NODE: Error: ...`), what rank 0 said
and srun's first lines (`srun ended with 137: NODE: task 1: Killed`). A rank that lost its peer
explains nothing, and an error of the program or of the data would follow it to any node: so would
every `Failure`, which is told without its class.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launch.cluster import EXITED, left_orderly

_HANG = re.compile(r"hang: rank (\d+) on ([\w.-]+)")
_NEVER = re.compile(r"hang: rank ([\d, -]+) never gave")
_LEFT = re.compile(r"([\w.-]+): tasks? [\d,-]+: ([^;]*)")
_ON = re.compile(r"\b(?:on node|on|node) ([\w.-]+)")
_SILENT = re.compile(r"silent: rank ([\d, -]+)")
_KIND = re.compile(r"^(?:\w+\.)*([A-Z]\w+)(?:: |$)")

_PROGRAM = re.compile(
    r"(?:Arithmetic|Assertion|Attribute|Import|Index|Key|Lookup|ModuleNotFound|Name|NotImplemented"
    r"|Type|UnboundLocal|Value|ZeroDivision)Error|BrokenImage|BrokenSample|Failure|LeaseHeld"
    r"|Misuse|Refused|ShardGone|Unreachable"
)
"""Errors that another node would meet as well."""
_SHARED = re.compile(r"No space left|[Qq]uota|could not be written|Read-only file system")
"""What is wrong with a file system that all nodes share."""
_PEER = re.compile(
    r"closed by peer|reset by peer|[Cc]onnection (?:closed|reset|refused)|[Bb]roken pipe|TCPStore"
    r"|remote process exited|[Tt]imed? ?out"
)


@dataclass(frozen=True)
class Places:
    """The nodes that ranks run on, in their order, and how many each holds."""

    nodes: Sequence[str]
    ranks_per_node: int

    def of(self, rank: int) -> str:
        """Return the node of a rank, empty where there is none."""
        index = rank // self.ranks_per_node
        return self.nodes[index] if index < len(self.nodes) else ""

    def named(self, name: str) -> str:
        """Return the node that a host calls itself, empty where it is none of these."""
        name = name.rstrip(".")
        return next((node for node in self.nodes if node in (name, name.partition(".")[0])), "")


def blamed(status: str, reason: str, places: Places) -> list[str]:
    """Return the nodes that ended an attempt with this status and reason."""
    if status == "lost":
        return _lost(reason, places)
    if hang := _HANG.search(reason):
        return _known(places.named(hang[2]) or places.of(int(hang[1])))
    if never := _NEVER.search(reason):
        return _unless_all({places.of(rank): None for rank in _numbers(never[1])}, places)
    return _known(_crashed(reason, places)) if status == "crashed" else []


def _lost(reason: str, places: Places) -> list[str]:
    """Return the nodes that srun names as lost, or whose ranks were silent at the roll call."""
    silent = _SILENT.search(reason)
    ranks = _numbers(silent[1]) if silent else []
    found = [*(places.named(name) for name in _ON.findall(reason)), *map(places.of, ranks)]
    return _unless_all(dict.fromkeys(found), places)


def _unless_all(found: Iterable[str], places: Places) -> list[str]:
    nodes = [node for node in found if node]
    return nodes if len(nodes) < len(places.nodes) else []  # all at once: no node's own fault


def _crashed(reason: str, places: Places) -> str:
    """Return the node of the rank that failed first."""
    left = _LEFT.search(reason)
    if left and not left[2].startswith(EXITED):
        return places.named(left[1])
    for piece in reason.partition("srun ended with")[0].split("; "):
        host, _, words = piece.partition(": ")
        node = places.named(host)
        words = words if node else piece
        kind = _KIND.match(words)
        if not words or _PEER.search(words):
            continue
        if not kind or _PROGRAM.fullmatch(kind[1]) or _SHARED.search(words):
            return ""
        return node or places.of(0)
    return places.named(left[1]) if left and not left_orderly(left[2]) else ""


def _known(node: str) -> list[str]:
    return [node] if node else []


def _numbers(text: str) -> list[int]:
    """Read `0-2, 5` as [0, 1, 2, 5]."""
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
