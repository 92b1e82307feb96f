"""The watchdog of a rank: writes its signs of life, and ends an attempt that does not get on.

A thread looks twice a second whether the section at hand is past its deadline; it runs while the
main thread sits in a collective. Who is past it, with nobody to wait for, writes who is late and
the stacks of all threads; the other ranks see that, write theirs, and all leave. They look for it
twice a second where their own deadline is near, and else as seldom as they beat in large worlds.
Where the main thread lets no other run (it holds the interpreter's lock), a timer of the
interpreter's own, which needs no lock, dumps the stacks and ends the process a little later.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self

from pipeline.engine.settings import WatchSpec
from pipeline.run.beats import (
    BEATS_A_SECOND,
    LOOK_S,
    MISSED_BEATS,
    Beat,
    Section,
    beat_interval_s,
    read_beats,
    write_beat,
)
from pipeline.run.files import write_json
from pipeline.run.folder import FAILED, RunFolder
from pipeline.run.hang import (
    claim_hang,
    hang_file,
    read_hang,
    record,
    stacks_file,
    table,
    verdict,
    where,
    without_stacks,
)
from pipeline.run.host import node_name
from pipeline.run.place import OwnPlace, right_now

MARGIN_S = 3.0
"""The timer comes so much after the watchdog, which says more."""
PATIENCE_S = 5.0
"""The rank that found the hang waits so long for the stacks of the others."""
NEAR_S = 10.0
"""So long before its own deadline a rank begins to look for a verdict at every look."""
SETTLE_S = 0.3
"""A dump takes some milliseconds; whoever leaves too early has the others killed in it."""
STAGGER_S = 0.05
MAX_STAGGER_S = 3.0
"""Ranks past a deadline look for the late one after each other, so that not all read all beats."""


class Watch(Protocol):
    """What the loop tells where it is."""

    def enter(self, section: Section, step: int, deadline_of: Section | None = None) -> None:
        """Say that a section begins; `deadline_of` gives it another section's deadline."""
        ...


class Unwatched:
    """Watches nothing; for loops outside of an attempt."""

    def enter(self, section: Section, step: int, deadline_of: Section | None = None) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _Now:
    """Where the main thread is; `since_s` by the wall clock, `end_s` by the monotonic one."""

    section: Section
    step: int
    since_s: float
    end_s: float
    limit: str


class Watchdog:
    """Watches one rank of an attempt, from its making to `close`.

    Raises:
        OSError: the run's folder cannot be written.
    """

    def __init__(
        self,
        folder: RunFolder,
        attempt: int,
        rank: int,
        world: int,
        spec: WatchSpec,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self.count: Callable[[], int] = lambda: -1
        """Tells how many collectives this rank has started."""
        self._folder, self._attempt, self._rank, self._world = folder, attempt, rank, world
        self._spec, self._leave = spec, leave
        self._host = node_name()
        self._interval_s = beat_interval_s(spec.beat_every_s, world)
        self._old = read_hang(folder, attempt)  # of a process that had the same number before
        path = stacks_file(folder, attempt, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = path.open("wb", buffering=0)
        self._place = OwnPlace(folder, attempt, rank)
        self._left_to_neighbours = False
        self._beat_due_s = self._order_due_s = self._hold_until_s = self._timer_s = 0.0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.enter(Section.SETUP, 0)
        self._tell(self._beat(self._now))
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def enter(self, section: Section, step: int, deadline_of: Section | None = None) -> None:
        """Say that a section begins; costs a few microseconds."""
        field = self._spec.field(deadline_of or section)
        limit_s = float(getattr(self._spec, field))
        began_s = time.monotonic()
        limit = f"watch.{field} is {limit_s:g}"
        self._now = _Now(section, step, time.time(), began_s + limit_s, limit)
        self._place.note(section, step, self._now.since_s)
        if abs(self._now.end_s - self._timer_s) > LOOK_S:
            self._set_timer()  # else the next look does

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        self._place.close()

    def _run(self) -> None:
        while not self._closed.wait(LOOK_S):
            with suppress(OSError):  # a full or slow disk: the next look comes
                if self._look():
                    return

    def _look(self) -> bool:
        """Beat, and end this process where it is time to; returns whether it was."""
        now, now_s = self._now, time.monotonic()
        if max(now.end_s, self._hold_until_s) != self._timer_s:
            self._set_timer()
        beat = self._beat(now)
        if now_s >= self._beat_due_s:
            self._beat_due_s = now_s + self._interval_s
            self._tell(beat)
        if self._may_be_ordered(now, now_s) and self._ordered() is not None:
            self._dump(beat)
            self._await_end()
        elif now_s < max(now.end_s, self._hold_until_s):
            return False
        elif self._hold_until_s < now.end_s:  # past the deadline since now
            self._hold_until_s = now_s + min(self._rank * STAGGER_S, MAX_STAGGER_S)
            return False
        elif (hold_s := self._find(now, beat)) > 0:
            self._hold_until_s = now_s + hold_s
            return False
        sys.stdout.flush()
        self._leave(FAILED)
        return True

    def _may_be_ordered(self, now: _Now, now_s: float) -> bool:
        """Return whether to look for another rank's verdict: a thousand ranks ask one server."""
        if now_s < min(self._order_due_s, now.end_s - NEAR_S):
            return False
        self._order_due_s = now_s + self._world / BEATS_A_SECOND
        return True

    def _find(self, now: _Now, beat: Beat) -> float:
        """Say who is late, dump, and wait for the others to dump.

        Returns 0, or how long to go on waiting where nobody is late, at least not yet.
        """
        self._hold_until_s = time.monotonic() + PATIENCE_S  # reading may take a while
        self._set_timer()
        beats = self._beats(beat)
        if (hold_s := self._hold_s(beat, beats)) > 0:
            return hold_s
        waited_s, every_s = beat.beat_s - now.since_s, self._spec.beat_every_s
        text, who = verdict(self._folder, beats, self._world, beat, waited_s, now.limit, every_s)
        values = record(text, who, beat, beats)
        if self._now is not now:  # it got on while the beats were read
            return LOOK_S
        self._dump(beat)
        if not self._claim(values):
            self._await_end()
            return 0.0
        print(f"{text}\n{table(beats, beat.beat_s)}", file=sys.stderr, flush=True)
        with suppress(OSError):
            self._folder.write_rank_error(self._attempt, text, who.host if who else self._host)
            values["without_stacks"] = self._await_stacks(beats)
            write_json(hang_file(self._folder, self._attempt), values)
        return 0.0

    def _beats(self, mine: Beat) -> list[Beat]:
        """Return all ranks' beats, those of silent ones as new as they can be had here."""
        known = {beat.rank: beat for beat in read_beats(self._folder, self._attempt)}
        known[self._rank] = mine
        return [
            right_now(self._folder, beat) if self._is_silent(beat, mine.beat_s) else beat
            for rank, beat in sorted(known.items())
            if rank < self._world
        ]

    def _is_silent(self, beat: Beat, now_s: float) -> bool:
        return beat.is_silent(now_s, self._interval_s)

    def _hold_s(self, mine: Beat, beats: list[Beat]) -> float:
        """Return how long to go on waiting before looking again, 0 where somebody is late.

        A rank that is not further than this one and within its own deadline keeps the others
        waiting with good reason, as rank 0 does while it writes a checkpoint. And where a silent
        rank has a neighbour on its host, that one may look where it really is: it goes first.
        """
        left_s = [self._left_s(other, mine) for other in beats if other.rank != self._rank]
        if left_s and max(left_s) > 0:
            return min(max(left_s), MISSED_BEATS * self._interval_s)
        silent = {beat.host for beat in beats if self._is_silent(beat, mine.beat_s)}
        awake = {beat.host for beat in beats if not self._is_silent(beat, mine.beat_s)}
        neighbours = bool(silent & awake) and self._host not in silent
        if neighbours and not self._left_to_neighbours:
            self._left_to_neighbours = True
            return 2 * LOOK_S + MAX_STAGGER_S
        return 0.0

    def _left_s(self, other: Beat, mine: Beat) -> float:
        """Return how long `other` may still work while this rank waits for it."""
        if other.place > mine.place or self._is_silent(other, mine.beat_s):
            return 0.0
        limit_s = float(getattr(self._spec, self._spec.field(other.section)))
        return limit_s - (mine.beat_s - other.since_s)

    def _claim(self, values: dict[str, Any]) -> bool:
        try:
            return claim_hang(self._folder, self._attempt, values, self._old)
        except OSError as error:  # a full disk must not keep a hung process alive
            print(f"{self._folder.path}: hang.json not written: {error}", file=sys.stderr)
            return True

    def _ordered(self) -> dict[str, Any] | None:
        """Return the verdict of another rank of this attempt, if there is one."""
        values = read_hang(self._folder, self._attempt)
        return None if values == self._old else values

    def _await_stacks(self, beats: list[Beat]) -> list[dict[str, Any]]:
        """Wait until all ranks dumped; return who did not, with what is known of the reason."""
        deadline_s = time.monotonic() + PATIENCE_S
        missing = list(range(self._world))
        while True:
            found = without_stacks(self._folder, self._attempt, missing, beats)
            missing = [item["rank"] for item in found]
            if not found or time.monotonic() > deadline_s:
                time.sleep(SETTLE_S)
                return found
            time.sleep(LOOK_S / 2)

    def _await_end(self) -> None:
        """Wait until the rank that found the hang has all it wants."""
        deadline_s = time.monotonic() + PATIENCE_S + 1.0
        while time.monotonic() < deadline_s:
            values = self._ordered()
            if values is not None and "without_stacks" in values:
                return
            time.sleep(LOOK_S / 2)

    def _dump(self, beat: Beat) -> None:
        """Write what all threads do; from now on the process ends, whatever happens."""
        with self._lock:
            faulthandler.dump_traceback_later(2 * PATIENCE_S, exit=True, file=self._stacks)
        with suppress(OSError):
            self._stacks.write(f"{where(beat)}, process {beat.pid}\n".encode())
            faulthandler.dump_traceback(self._stacks, all_threads=True)

    def _set_timer(self) -> None:
        """Have the interpreter end the process where no other thread can."""
        with self._lock:
            end_s = max(self._now.end_s, self._hold_until_s)
            left_s = max(0.0, end_s - time.monotonic()) + MARGIN_S
            faulthandler.dump_traceback_later(left_s, exit=True, file=self._stacks)
            self._timer_s = end_s

    def _beat(self, now: _Now) -> Beat:
        pid = os.getpid()
        place = (self._rank, self._host, pid, now.section, now.step, now.since_s)
        return Beat(*place, time.time(), self._attempt, self.count(), self._interval_s)

    def _tell(self, beat: Beat) -> None:
        with suppress(OSError):
            write_beat(self._folder, beat)
