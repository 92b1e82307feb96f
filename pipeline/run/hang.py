"""What is left of an attempt that hung: who kept the others waiting, and what all threads did.

RUN/attempts/attempt-0003/hang.json               the verdict and the beats of all ranks
                          stacks/rank-00017.txt   the stacks of rank 17's threads

The first rank past a deadline writes hang.json; to the others it is the order to dump and leave.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.run.beats import Beat, attempt_folder, beat_interval_s, late, read_beats
from pipeline.run.files import read_json, write_json
from pipeline.run.folder import RunFolder
from pipeline.run.place import state_of

TABLE_ROWS = 16
NAMED = 8

STATES = {
    "T": "it is stopped, as by SIGSTOP",
    "t": "a debugger holds it",
    "D": "it waits in the kernel, as for storage that does not answer",
}
"""What /proc says of a process that gives no sign of life."""


def hang_file(folder: RunFolder, attempt: int) -> Path:
    """Return the file of the verdict."""
    return attempt_folder(folder, attempt) / "hang.json"


def stacks_file(folder: RunFolder, attempt: int, rank: int) -> Path:
    """Return the file of a rank's stacks; it is empty while nothing is wrong."""
    return attempt_folder(folder, attempt) / "stacks" / f"rank-{rank:05d}.txt"


def read_hang(folder: RunFolder, attempt: int) -> dict[str, Any] | None:
    """Return the verdict, None where no rank wrote one."""
    values = read_json(hang_file(folder, attempt))
    return values if isinstance(values, dict) and "text" in values else None


def claim_hang(
    folder: RunFolder, attempt: int, values: dict[str, Any], old: dict[str, Any] | None
) -> bool:
    """Write the verdict unless another rank has; returns whether it is this one's.

    `old` is what was there before this attempt began.

    Raises:
        OSError: the folder cannot be written.
    """
    path = hang_file(folder, attempt)
    mine = path.with_name(f".hang-{os.getpid()}-{values['found_by']['rank']}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(mine, values)
    try:
        os.link(mine, path)
    except FileExistsError:
        if read_hang(folder, attempt) != old:
            return False
        os.replace(mine, path)
    finally:
        mine.unlink(missing_ok=True)
    return True


def hang_text(folder: RunFolder, attempt: int, since_s: float = 0.0) -> str:
    """Return in one line who made an attempt hang, empty where none did.

    A rank that could not even write the verdict may have left its stacks; then the beats tell.
    What is older than `since_s` is of an earlier process that had the same number.
    """
    values = read_hang(folder, attempt)
    if values is not None and float(values.get("found_s", since_s)) >= since_s:
        return str(values["text"])
    stacks = attempt_folder(folder, attempt).glob("stacks/*.txt")
    dumped = [path for path in stacks if _size(path) and path.stat().st_mtime >= since_s]
    if not dumped:
        return ""
    beats = read_beats(folder, attempt)
    found = [beat for beat in beats if stacks_file(folder, attempt, beat.rank) in dumped]
    if not found:
        return "hang: a rank left its stacks and no sign of life"
    return f"hang: {where(found[0])} when last seen: none of its threads could run, see its stacks"


def where(beat: Beat) -> str:
    """Return `rank 1 on node2 in section step at step 12`."""
    return f"rank {beat.rank} on {beat.host} in section {beat.section} at step {beat.step}"


def verdict(
    folder: RunFolder,
    beats: Sequence[Beat],
    world: int,
    finder: Beat,
    waited_s: float,
    limit: str,
    every_s: float,
) -> tuple[str, Beat | None]:
    """Say who keeps the others waiting, in one line, and return that rank's beat.

    Args:
        folder: of the run; a silent process of this host is looked at.
        beats: what the ranks wrote; some may be missing.
        world: so many ranks there should be.
        finder: where the rank is that ran out of patience, now.
        waited_s: how long it has been there.
        limit: the deadline, in words.
        every_s: the run's watch.beat_every_s.
    """
    now_s = finder.beat_s
    found = f"{where(finder)} waited {waited_s:.0f} s ({limit})"
    if missing := sorted(set(range(world)) - {beat.rank for beat in beats}):
        return f"hang: rank {listed(missing)} never gave a sign of life; {found}", None
    beat = late(beats, now_s, every_s)
    if beat is None:
        return f"hang: no rank is behind the others: look at the network; {found}", None
    interval_s = beat_interval_s(every_s, world)
    if beat.is_silent(now_s, interval_s):
        state = STATES.get(state_of(folder, beat), "")
        why = f"no sign of life for {beat.age_s(now_s):.0f} s" + (f", {state}" if state else "")
        others = [b.rank for b in beats if b != beat and b.is_silent(now_s, interval_s)]
        why += f", nor of rank {listed(others)}" if others else ""
    elif beat.rank == finder.rank:
        return f"hang: {where(beat)}: there for {waited_s:.0f} s ({limit})", beat
    else:
        why = f"there for {now_s - beat.since_s:.0f} s, behind the others"
    return f"hang: {where(beat)}: {why}; {found}", beat


def table(beats: Sequence[Beat], now_s: float) -> str:
    """Return the beats as lines for people, those that are least far first."""
    rows = sorted(beats, key=lambda beat: (beat.place, beat.collectives, beat.beat_s))
    lines = [f"{'rank':>6}  {'section':<10}  {'step':>8}  {'since':>8}  {'last sign':>9}  host"]
    for beat in rows[:TABLE_ROWS]:
        lines.append(
            f"{beat.rank:>6}  {beat.section:<10}  {beat.step:>8}  {now_s - beat.since_s:>6.0f} s  "
            f"{beat.age_s(now_s):>7.1f} s  {beat.host}"
        )
    more = len(rows) - TABLE_ROWS
    return "\n".join(
        lines + ([f"and {more} more ranks: hang.json has them all"] if more > 0 else [])
    )


def record(text: str, beat: Beat | None, finder: Beat, beats: Sequence[Beat]) -> dict[str, Any]:
    """Return what is written into hang.json."""
    return {
        "text": text,
        "late": asdict(beat) if beat is not None else None,
        "found_by": asdict(finder),
        "found_s": finder.beat_s,
        "beats": [asdict(beat) for beat in beats],
    }


def without_stacks(
    folder: RunFolder, attempt: int, ranks: Sequence[int], beats: Sequence[Beat]
) -> list[dict[str, Any]]:
    """Return rank, host and reason of those that did not dump their stacks."""
    known = {beat.rank: beat for beat in beats}
    found: list[dict[str, Any]] = []
    for rank in ranks:
        if _size(stacks_file(folder, attempt, rank)):
            continue
        beat = known.get(rank)
        state = STATES.get(state_of(folder, beat), "") if beat is not None else ""
        why = state or "it is stopped, its host does not answer, or a call of its never returns"
        found.append({"rank": rank, "host": beat.host if beat is not None else "", "why": why})
    return found


def listed(ranks: Sequence[int]) -> str:
    """Return the first few ranks and how many more there are."""
    more = len(ranks) - NAMED
    return ", ".join(map(str, ranks[:NAMED])) + (f" and {more} more" if more > 0 else "")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
