"""What a run's spool says of its attempts: which steps each made, and when."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.tracking.events import Event, read_events


@dataclass
class Leg:
    """An attempt that made the steps `first` to `last`; -1 before its first one is done."""

    attempt: int
    first: int = -1
    last: int = -1
    began_s: float = 0.0
    """When its first step was done, seconds since 1970."""


@dataclass
class Legs:
    """The attempts in the spool of `folder` that made a step, as far as it was read."""

    folder: Path
    made: list[Leg] = field(default_factory=list)
    _next: Leg | None = None
    _offset: int = 0

    def read_on(self) -> Leg | None:
        """Take in what is new; returns the newest leg."""
        for event in read_events(self.folder, self._offset):
            self._offset = event.end
            self._take(event)
        return self.made[-1] if self.made else None

    def after(self, attempt: int) -> tuple[Leg, Leg] | None:
        """Return the leg of an attempt and the one that followed; None where none did."""
        for leg, following in zip(self.made, self.made[1:], strict=False):
            if leg.attempt == attempt:
                return leg, following
        return None

    def _take(self, event: Event) -> None:
        if event.kind == "attempt":
            self._next = Leg(int(event.values["attempt"]))
        elif event.kind == "metrics" and "train/loss" in event.values["values"]:
            step, leg = int(event.values["step"]), self._next
            assert leg is not None, f"{self.folder}: a step before any attempt"
            if leg.first < 0:
                leg.first, leg.began_s = step, event.time_ms / 1000
                self.made.append(leg)
            leg.last = step
