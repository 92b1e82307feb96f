"""Where a process is, readable by its neighbours even when it is stopped or lets no thread run.

A beat is some seconds old. What a rank is at now stands in a piece of its memory that any process
of the same user on the same host can read through /proc; it is gone with the process.
"""

import os
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from pipeline.run.beats import Beat, Section
from pipeline.run.folder import RunFolder
from pipeline.run.host import process_state

_SIZE = 64


class OwnPlace:
    """This process's own piece of memory."""

    def __init__(self, folder: RunFolder, attempt: int, rank: int) -> None:
        self._handle = os.memfd_create(_name(folder, attempt, rank))

    def note(self, section: Section, step: int, since_s: float) -> None:
        """Say where this process is."""
        os.pwrite(self._handle, f"{section} {step} {since_s!r}".ljust(_SIZE).encode(), 0)

    def close(self) -> None:
        """Give the memory back."""
        os.close(self._handle)


def right_now(folder: RunFolder, beat: Beat) -> Beat:
    """Return `beat` with where its rank is now; as it is where that is not to be seen from here."""
    with suppress(OSError, ValueError):
        if (memory := _memory_of(folder, beat)) is not None:
            section, step, since_s = memory.read_text().split()
            place = (Section(section), int(step), float(since_s))
            return replace(beat, section=place[0], step=place[1], since_s=place[2])
    return beat


def state_of(folder: RunFolder, beat: Beat) -> str:
    """Return the kernel's letter for a rank's process, empty where it is not to be seen here."""
    with suppress(OSError):
        if _memory_of(folder, beat) is not None:
            return process_state(beat.pid)
    return ""


def _memory_of(folder: RunFolder, beat: Beat) -> Path | None:
    """Return where the rank's memory can be read; its name tells that the process is the rank."""
    wanted = f"/memfd:{_name(folder, beat.attempt, beat.rank)} (deleted)"
    for link in Path(f"/proc/{beat.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if str(link.readlink()) == wanted:
                return link
    return None


def _name(folder: RunFolder, attempt: int, rank: int) -> str:
    """Return a name that no other run's process has; folders may be seen under several paths."""
    digest = sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
    return f"rank-{rank}-of-{digest}-{attempt}"
