"""The words of a progress line, for a terminal and for a log."""

import contextlib
import shutil
import sys
import time
from collections import deque

from pipeline.run.clock import duration

FIRST_S, EVERY_S = 2.0, 10.0
"""When a log gets its first line, and how often the next ones."""
ON_TERMINAL_S = 0.2
_WINDOW_S = 60.0
"""The rate is that of the last minute: what a restart finds finished counts in no time."""


class Meter:
    """Counts, and says how far the work is: count, share, rate, time left.

    Args of the constructor: what is done; the unit, where `bytes` is shown as GB (as MB where the
    whole is less than one); how many there will be, if that is known.
    """

    def __init__(self, doing: str, unit: str, total: int | None = None) -> None:
        self._doing, self._unit, self._total = doing, unit, total
        self._count = 0
        self._start_s = time.monotonic()
        self._seen: deque[tuple[float, int]] = deque([(self._start_s, 0)])
        self._on_terminal = sys.stderr.isatty()
        self.first_s = ON_TERMINAL_S if self._on_terminal else FIRST_S
        self.every_s = ON_TERMINAL_S if self._on_terminal else EVERY_S

    def add(self, count: int = 1) -> None:
        """Count `count` more."""
        self._count += count

    def say(self) -> None:
        """Print where the work stands."""
        now = time.monotonic()
        self._seen.append((now, self._count))
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW_S:
            self._seen.popleft()
        then, before = self._seen[0]
        rate = (self._count - before) / max(now - then, 1e-3)
        self._print(self.line(rate, now - self._start_s), last=False)

    def say_last(self) -> None:
        """Print how it ended: the rate over all, and how long it took."""
        took_s = time.monotonic() - self._start_s
        rate = self._count / max(took_s, 1e-3)
        self._print(f"{self._so_far()}, {self._per_second(rate)}, took {clock(took_s)}", last=True)

    def line(self, rate: float, took_s: float) -> str:
        """Return the line for a rate (units per second) after so many seconds."""
        line = f"{self._so_far()}, {self._per_second(rate)}"
        if self._total is None:
            return f"{line}, {clock(took_s)}"
        left = max(self._total - self._count, 0)
        return f"{line}, {clock(left / rate)} left" if rate > 0 and left else line

    def _so_far(self) -> str:
        of = "" if self._total is None else f" of {self._amount(self._total)}"
        unit = self._unit if self._unit != "bytes" else "GB" if self._is_large() else "MB"
        share = f" ({100 * self._count // self._total} %)" if self._total else ""
        return f"{self._doing}: {self._amount(self._count)}{of} {unit}{share}"

    def _amount(self, count: int) -> str:
        if self._unit != "bytes":
            return f"{count:,}"
        return f"{count / (1e9 if self._is_large() else 1e6):,.2f}"

    def _is_large(self) -> bool:
        return self._total is None or self._total >= 1_000_000_000

    def _per_second(self, rate: float) -> str:
        if self._unit == "bytes":
            return f"{rate / 1e6:,.0f} MB/s"
        return f"{rate:,.0f}/s" if rate >= 10 or not rate else f"{rate:.2g}/s"

    def _print(self, line: str, last: bool) -> None:
        if self._on_terminal:
            columns = shutil.get_terminal_size().columns
            line = f"\r{line[: columns - 1]}\x1b[K"
        end = "" if self._on_terminal and not last else "\n"
        # Work must not fail because nobody reads the error stream any more.
        with contextlib.suppress(OSError):
            print(line, end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return a time for people: 4.2 s, and from 10 s on as everywhere: 45 s, 3:20 min."""
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)
