"""Writes checkpoints in the background: training stops for the copy to host memory only.

One write runs at a time. A write that fails for want of space keeps the older checkpoints and
training alive; the third failure in a row ends the run, because nothing would be saved any more.
"""

import threading
from collections.abc import Callable
from typing import Any

from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.store import Store

MAX_FAILURES = 3
CLOSE_S = 120.0
"""So long may the last write take when a training ends by an error: a dead disk blocks for ever."""


class Writer:
    """The background writer of one run; on rank 0 only."""

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        self._store = store
        self._say = say
        self._copy: TrainState | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._failures = 0

    def save(self, state: TrainState, facts: dict[str, Any]) -> None:
        """Start writing a copy of `state`; waits for the write before it.

        Raises:
            OSError: three writes in a row failed.
            LeaseHeld: another job took the run over.
        """
        self.wait()
        copy = self._copy = state.on_host(self._copy)
        self._thread = threading.Thread(
            target=self._commit, args=(copy, facts), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> bool:
        """Wait until nothing is being written; False where the last write failed."""
        if self._thread is None:
            return True
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is None:
            self._failures = 0
            return True
        if not isinstance(error, OSError):
            raise error
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise error
        return False

    def close(self) -> None:
        """Let a write that is under way finish, whatever ended the training; raises nothing."""
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                where, waited_s = self._store.folder, CLOSE_S
                self._say(f"{where}: the last checkpoint is not written after {waited_s:.0f} s")

    def _commit(self, state: TrainState, facts: dict[str, Any]) -> None:
        try:
            self._store.commit(state, facts)
        except Exception as error:  # handed to the training thread by `wait`
            self._error = error
            if isinstance(error, OSError):  # said at once: a crash may come before the next save
                where = self._store.folder
                self._say(f"{where}: checkpoint not written ({error}); make room there")
