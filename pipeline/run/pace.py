"""Who holds the others up: the ranks' seconds per step, the slowest of them, and the file of both.

Ranks of one training take every step together, so one that is slow costs the time of all. What a
rank does before it waits for others is its data wait and its own compute; the slowest rank is the
one whose sum of the two is largest, and the phase to blame is the one with more above the median.
Rank 0 writes the newest table to attempts/attempt-0003/pace.json.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.run.files import read_json, write_json
from pipeline.run.folder import RunFolder

TOO_SLOW = 1.3
"""Times the median: NVIDIA's resiliency extension flags a relative speed below 0.7, about this."""
WINDOWS = 3
"""So many windows in a row, as one may be an evaluation, a page cache or a neighbour."""
PHASES = ("data", "compute", "wait")


class RankPace(NamedTuple):
    """Mean seconds per step of one rank: waiting for data, computing, and all the rest."""

    rank: int
    host: str
    data_s: float
    compute_s: float
    wait_s: float

    def seconds(self, phase: str) -> float:
        """Return the seconds of one of PHASES."""
        return float(getattr(self, f"{phase}_s"))


class Slowest(NamedTuple):
    """The rank that the others wait for, in which phase, and its time relative to the median."""

    rank: int
    host: str
    phase: str
    ratio: float


@dataclass(frozen=True)
class PaceTable:
    """One window of steps that ended with `step`; `worst` is there once it lasted."""

    step: int
    ranks: tuple[RankPace, ...]
    worst: Slowest | None = None

    def as_values(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        worst = self.worst._asdict() if self.worst else None
        ranks = [rank._asdict() for rank in self.ranks]
        return {"step": self.step, "ranks": ranks, "worst": worst}

    def spread(self) -> dict[str, float]:
        """Return `PHASE_max_s` and `PHASE_median_s` over the ranks."""
        times = {phase: [rank.seconds(phase) for rank in self.ranks] for phase in PHASES}
        largest = {f"{phase}_max_s": max(values) for phase, values in times.items()}
        return largest | {f"{phase}_median_s": median(values) for phase, values in times.items()}


def median(values: Sequence[float]) -> float:
    """Return the median, of an even number the lower one: of two ranks, the faster is the norm."""
    return statistics.median_low(values)


def slowest(ranks: Sequence[RankPace], meets_in_forward: bool = False) -> Slowest | None:
    """Return the rank that takes longest before it waits; None where there is none to compare.

    Where ranks meet within the forward pass, a fast rank's compute holds its waiting, so the
    shortest one stands for all and only data can be blamed.
    """
    if len(ranks) < 2:
        return None
    if meets_in_forward:
        own = min(rank.compute_s for rank in ranks)
        ranks = [rank._replace(compute_s=own) for rank in ranks]
    usual = median([rank.data_s + rank.compute_s for rank in ranks])
    last = max(ranks, key=lambda rank: rank.data_s + rank.compute_s)
    if usual <= 0:
        return None
    above = {
        phase: last.seconds(phase) - median([rank.seconds(phase) for rank in ranks])
        for phase in ("compute", "data")
    }
    phase = max(above, key=lambda name: above[name])
    return Slowest(last.rank, last.host, phase, (last.data_s + last.compute_s) / usual)


class Verdicts:
    """Names a rank that is too slow in WINDOWS windows in a row, until a window without it."""

    def __init__(self) -> None:
        self._row: list[Slowest] = []

    def take(self, found: Slowest | None) -> Slowest | None:
        """Take one window's slowest rank; return it where it lasted."""
        if found is None or found.ratio <= TOO_SLOW:
            self._row = []
            return None
        same = [seen for seen in self._row if seen.rank == found.rank]
        self._row = [*same, found][-WINDOWS:]
        return found if len(self._row) == WINDOWS else None


def told(before: Slowest | None, table: PaceTable) -> str:
    """Return the line for people where the rank or phase to blame changed, else nothing."""
    worst = table.worst
    if worst is None:
        return f"rank {before.rank} on {before.host} keeps pace again" if before else ""
    if before is not None and (before.rank, before.phase) == (worst.rank, worst.phase):
        return ""
    usual_ms, own_ms = (
        1000 * value
        for value in (
            median([rank.seconds(worst.phase) for rank in table.ranks]),
            table.ranks[worst.rank].seconds(worst.phase),
        )
    )
    what = {"data": "waits for data", "compute": "computes"}[worst.phase]
    return (
        f"step {table.step:>6}  slow: all wait for rank {worst.rank} on {worst.host}, which takes "
        f"{worst.ratio:.1f} times as long as the median rank before it waits for others; it "
        f"{what} {own_ms:.0f} ms a step, the median rank {usual_ms:.0f} ms"
    )


def pace_file(folder: RunFolder, attempt: int) -> Path:
    """Return where the newest table of an attempt is."""
    return folder.outcome_file(attempt).with_suffix("") / "pace.json"


def write_pace(folder: RunFolder, attempt: int, table: PaceTable) -> None:
    """Replace the table of `attempt`."""
    path = pace_file(folder, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, table.as_values())


def read_pace(folder: RunFolder, attempt: int) -> PaceTable | None:
    """Return the newest table of `attempt`; None where there is none or it is damaged."""
    values: Any = read_json(pace_file(folder, attempt))
    try:
        ranks = tuple(_rank_pace(**rank) for rank in values["ranks"])
        worst = _slowest(**values["worst"]) if values["worst"] else None
        return PaceTable(int(values["step"]), ranks, worst)
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _rank_pace(rank: int, host: str, data_s: float, compute_s: float, wait_s: float) -> RankPace:
    return RankPace(int(rank), str(host), float(data_s), float(compute_s), float(wait_s))


def _slowest(rank: int, host: str, phase: str, ratio: float) -> Slowest:
    return Slowest(int(rank), str(host), str(phase), float(ratio))
