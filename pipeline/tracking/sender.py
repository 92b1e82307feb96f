"""The process that takes a run's spool to MLflow: `python -m pipeline.tracking.sender RUN_DIR`.

Rank 0 starts one beside the training. It ignores the ranks' signals and ends by itself: when the
run has finished and all is sent, or, its parent gone, when all is sent or LINGER_S have passed.
What it left can be sent later with `sync`.
"""

import argparse
import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
from pipeline.run.files import read_json, write_json
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse
from pipeline.tracking.client import Refused, Unreachable
from pipeline.tracking.delivery import TARGET, Delivery
from pipeline.tracking.position import unsent
from pipeline.tracking.settings import TrackingSpec, resolve_uri

POLL_S, LINGER_S, BACKOFF_S = 0.5, 60.0, (0.5, 10.0)
log = logging.getLogger("sender")


@dataclass
class Sender:
    """A started sender process."""

    run: RunFolder
    process: subprocess.Popen[bytes]
    restarted: bool = False

    def drain(self, timeout_s: float) -> int:
        """Wait until all is sent or `timeout_s` passed; return how many events are unsent.

        A sender that was killed meanwhile is started once more.
        """
        deadline = time.monotonic() + timeout_s
        left = unsent(self.run.spool)
        while left and time.monotonic() < deadline:
            if self.process.poll() is not None:
                if self.restarted:
                    break
                self.process, self.restarted = _spawn(self.run), True
            time.sleep(0.1)
            left = unsent(self.run.spool)
        return left


def start_sender(run: RunFolder, spec: TrackingSpec) -> Sender:
    """Start the sender of `run` in a session of its own; returns at once.

    Raises:
        Misuse: the store is none that can be used (see `resolve_uri`).
    """
    _write_target(run, spec)
    return Sender(run, _spawn(run))


def _spawn(run: RunFolder) -> subprocess.Popen[bytes]:
    root = str(Path(pipeline.__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "pipeline.tracking.sender", str(run.path)]
    with open(run.spool / "sender.log", "ab") as output:
        return subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )


def sync(run: RunFolder, spec: TrackingSpec | None = None, timeout_s: float = 60.0) -> int:
    """Send what a run's sender left, from this process; return how many events are unsent.

    `spec` (or MLFLOW_TRACKING_URI) may name another store than the run had: it gets everything.

    Raises:
        Misuse: the run has no spool, or the store is none that can be used.
        Unreachable: MLflow was away for `timeout_s`; Refused: it does not want this run.
    """
    if not run.spool.is_dir():
        raise Misuse(f"{run.path}: has no spool/, so it is no run, or one without tracking")
    _write_target(run, spec)
    deadline = time.monotonic() + timeout_s
    with _only_sender(run.spool, lambda: time.monotonic() < deadline) as alone:
        delivery = Delivery(run.spool)
        while alone:
            try:
                delivery.deliver()
                break
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
    return unsent(run.spool)


def main(arguments: list[str] | None = None) -> int:
    """Run until the spool is sent; exit code 0, or 1 where something is left in it."""
    parser = argparse.ArgumentParser(prog="pipeline.tracking.sender", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run, for example runs/NAME")
    parser.add_argument("--parent", type=int, default=0, help="process to outlive only shortly")
    options = parser.parse_args(arguments)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(10)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    run = RunFolder(options.run)
    if not isinstance(read_json(run.spool / TARGET), dict):
        parser.error(f"{run.spool / TARGET} is missing: tracking was never started for this run")
    return _tail(run, options.parent)


def _tail(run: RunFolder, parent: int) -> int:
    watch = _Watch(parent)
    with _only_sender(run.spool, watch.may_wait) as alone:
        if not alone:
            return 1
        try:
            delivery = Delivery(run.spool)
            while True:
                reached = _try(delivery, watch)
                left = unsent(run.spool)
                if delivery.ended and not left:
                    return 0
                if watch.orphaned and (not left or not watch.may_wait()):
                    if reached:
                        delivery.mark_killed(parent)
                    return 1 if left else 0
                time.sleep(POLL_S if reached else watch.backoff_s())
        except (Refused, Unreachable) as error:
            log.error("%s", error)
            return 1


def _try(delivery: Delivery, watch: "_Watch") -> bool:
    """Deliver once; say in the log when MLflow goes away and when it is back."""
    try:
        delivery.deliver()
    except Unreachable as error:
        if not watch.failures:
            log.warning("%s; the events wait in the spool", error)
        watch.failures += 1
        return False
    if watch.failures:
        log.warning("MLflow is back after %d attempts", watch.failures)
        watch.failures = 0
    return True


class _Watch:
    """Whether the parent lives, and how long to go on without it; parent 0: until it is done."""

    def __init__(self, parent: int) -> None:
        self.failures = 0
        self._parent = parent
        self._since: float | None = None

    @property
    def orphaned(self) -> bool:
        if self._parent and os.getppid() == self._parent:
            return False
        if self._since is None:
            self._since = time.monotonic()
        return True

    def may_wait(self) -> bool:
        """Return True while the parent lives, and for LINGER_S after."""
        return not self.orphaned or time.monotonic() - (self._since or 0.0) < LINGER_S

    def backoff_s(self) -> float:
        """Return how long to wait after the last failure: doubling, at most ten seconds."""
        first, most = BACKOFF_S
        return min(most, first * 2.0 ** min(self.failures - 1, 10))


@contextlib.contextmanager
def _only_sender(folder: Path, may_wait: Any) -> Iterator[bool]:
    """Hold the spool's sender lock; yields False where another sender kept it too long."""
    with open(folder / "sender.lock", "w") as guard:
        while True:
            try:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not may_wait():
                    yield False
                    return
                time.sleep(0.2)
                continue
            except OSError:
                log.warning("%s: no file locks here; repetitions are still recognised", folder)
            yield True
            return


def _write_target(run: RunFolder, spec: TrackingSpec | None) -> None:
    """Record where the run goes (None: as before); a known run's id is kept, and tried there."""
    old = read_json(run.spool / TARGET)
    old = old if isinstance(old, dict) else {}
    uri = resolve_uri(spec or TrackingSpec(), recorded=old.get("uri"))
    experiment = spec.experiment if spec else old.get("experiment", TrackingSpec().experiment)
    name = run.path.resolve().name
    target = {**old, "uri": uri, "experiment": experiment, "run_name": name}
    if target != old:
        run.spool.mkdir(parents=True, exist_ok=True)
        write_json(run.spool / TARGET, target)


if __name__ == "__main__":
    sys.exit(main())
