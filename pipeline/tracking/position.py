"""How far the sender came: written after each delivery, so that a killed one goes on from there.

Before metrics are sent the position says `pending`; whoever finds it so does not know whether
they arrived, and asks MLflow for the last step of each metric.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.run.files import read_json, write_json
from pipeline.tracking import events

FILE = "position.json"


@dataclass
class Position:
    """What MLflow has of a spool. `marks`: highest step sent of each metric."""

    uri: str = ""
    run_id: str = ""
    offset: int = 0
    n: int = -1
    writer: int = 0
    pending: bool = False
    rejected: int = 0
    marks: dict[str, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write atomically."""
        write_json(folder / FILE, asdict(self))

    def rest(self, folder: Path) -> Iterator[events.Event]:
        """Yield the events of the spool in `folder` that wait to be sent."""
        return events.read_events(folder, self.offset, self.writer)

    @classmethod
    def load(cls, folder: Path) -> "Position":
        """Read; a missing or damaged file means the beginning."""
        values = read_json(folder / FILE)
        known = set(cls.__dataclass_fields__)
        return cls(**values) if isinstance(values, dict) and set(values) == known else cls()


def unsent(folder: Path) -> int:
    """Return how many events of the spool in `folder` wait to be sent."""
    return sum(1 for _ in Position.load(folder).rest(folder))
