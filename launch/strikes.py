"""Nodes that ended attempts: a node with two strikes within a day is left out of what follows.

`attempts/nodes.json` in the run's folder holds the strikes of each node with time and cause.
Deleting the file forgives all of them; a strike is forgotten by itself after a day.
"""

import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass

from pipeline.run.files import read_json, write_json
from pipeline.run.folder import RunFolder

STRIKES = 2
FORGET_S = 86400.0
"""A node may have been mended meanwhile; one that was not strikes twice again."""


@dataclass(frozen=True)
class Strike:
    """One attempt that a node ended."""

    attempt: int
    time_s: float
    cause: str


class Strikes:
    """The strikes of a run's nodes."""

    def __init__(self, folder: RunFolder) -> None:
        self._file = folder.path / "attempts" / "nodes.json"

    def note(self, nodes: Iterable[str], attempt: int, cause: str) -> None:
        """Add a strike to each of `nodes`.

        Raises:
            OSError: the folder cannot be written.
        """
        strike = Strike(attempt, time.time(), cause)
        known = self.by_node()
        for node in nodes:
            known[node] = [*known.get(node, []), strike]
        values = {node: [asdict(strike) for strike in own] for node, own in known.items()}
        write_json(self._file, values)

    def by_node(self) -> dict[str, list[Strike]]:
        """Return the strikes that count, oldest first; what cannot be read counts as none."""
        values = read_json(self._file)
        if not isinstance(values, dict):
            return {}
        found = {node: _strikes(own) for node, own in values.items()}
        return {node: own for node, own in found.items() if own}

    def left_out(self) -> dict[str, str]:
        """Return the nodes that are to be left out, each with the reasons in words."""
        return {
            node: "; ".join(f"attempt {strike.attempt}: {strike.cause}" for strike in own)
            for node, own in self.by_node().items()
            if len(own) >= STRIKES
        }

    def among(self, nodes: Collection[str]) -> dict[str, str]:
        """Return those of `nodes` that are to be left out, each with the reasons in words."""
        return {node: why for node, why in self.left_out().items() if node in nodes}


def _strikes(values: object) -> list[Strike]:
    """Read one node's strikes of the last day."""
    oldest = time.time() - FORGET_S
    try:
        strikes = [Strike(**value) for value in values]  # type: ignore[attr-defined]
        return [strike for strike in strikes if strike.time_s > oldest]
    except TypeError:
        return []
