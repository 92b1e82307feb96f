"""Brings shards in the background before they are needed.

Daemon threads of the process that reads: nothing waits for them at its end, and what they leave
half done is gone on with by whoever wants it next. Their errors are not told: who needs the shard
tries for himself, and his error names the sample.
"""

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import SimpleQueue

from pipeline.spec import Failure


class Ahead:
    """Calls `bring` for the shards that are wanted, first come first served.

    Args:
        bring: has a shard on this node when it returns.
        threads: that work at the same time.
    """

    def __init__(self, bring: Callable[[int], object], threads: int) -> None:
        self._bring, self._threads = bring, threads
        self._start()

    def want(self, shards: Iterable[int]) -> None:
        """Line up those shards that are not in the line yet."""
        if self._pid != os.getpid():  # threads stay behind in a fork
            self._start()
        for shard in shards:
            if shard not in self._lined_up:
                self._lined_up.add(shard)
                self._line.put(shard)
                self._grow()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._line: SimpleQueue[int] = SimpleQueue()
        self._lined_up: set[int] = set()
        self._running = 0

    def _grow(self) -> None:
        if self._running < self._threads:
            self._running += 1
            work = threading.Thread(target=self._work, name="shards-ahead", daemon=True)
            work.start()

    def _work(self) -> None:
        line, lined_up = self._line, self._lined_up
        while True:
            shard = line.get()
            with suppress(Failure, OSError):
                self._bring(shard)
            lined_up.discard(shard)
