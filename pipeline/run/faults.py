"""Faults on purpose, for tests of survival: PIPELINE_FAULTS says what breaks, where and when.

    PIPELINE_FAULTS='[{"kind": "kill", "rank": 1, "step": 24}]' python -m launch local --ranks 2 ...

Code that shall be broken names a point (`hit`, `each`, `wrote`); without the variable these return
at once. A fault is met when its rank passes its point at its step or, should that step be none of
the point's, at the next. Those met once are kept as files in the run's `faults/`, written before
the fault strikes, so that a later attempt does not meet them again. docs/faults.md lists all.
"""

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn, Self, TypeVar

from pydantic import Field, model_validator

from pipeline.run.folder import RunFolder, this_attempt
from pipeline.spec import Misuse, Spec

VARIABLE = "PIPELINE_FAULTS"
Kind = Literal[
    "kill", "stop", "term", "usr2", "raise", "exit", "sleep", "nan", "nospace", "cut"
]  # fmt: skip
Point = Literal["setup", "data", "step", "forward", "checkpoint", "evaluate", "finish"]

_SIGNALS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "term": signal.SIGTERM,
    "usr2": signal.SIGUSR2,
}
_WRITER = ("nospace", "cut")
_OWN_FIELDS = {"seconds": ("sleep",), "every": ("sleep",), "code": ("exit",), "bytes": _WRITER}
_FIXED_POINTS: dict[str, Point] = {"nan": "forward", "nospace": "checkpoint", "cut": "checkpoint"}
Item = TypeVar("Item")


class Fault(Spec):
    """One fault: `kind` on `rank`, at `step` (counted from 1; 0 is the setup) of `point`.

    kill, stop, term, usr2: that signal to the rank itself; raise: a RuntimeError; exit: leaves with
    `code`; sleep: `seconds` in the training thread, with `every` at each step from `step` on;
    nan: the loss; nospace, cut: the checkpoint's writer meets a full disk, or is killed, when
    `bytes` are written. Without `once` each attempt meets the fault anew.
    """

    kind: Kind
    rank: int = Field(default=0, ge=0)
    step: int = Field(ge=0)
    point: Point = "step"
    once: bool = True
    every: bool = False
    seconds: float | None = Field(default=None, gt=0)
    code: int = Field(default=1, ge=0, le=255)
    bytes: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        for name, kinds in _OWN_FIELDS.items():
            if name in self.model_fields_set and self.kind not in kinds:
                raise ValueError(f"'{name}' belongs to {' and '.join(kinds)}; remove it")
        wanted = {"sleep": "seconds", "nospace": "bytes", "cut": "bytes"}.get(self.kind)
        if wanted and getattr(self, wanted) is None:
            raise ValueError(f"a {self.kind} needs '{wanted}'; add it")
        fixed = _FIXED_POINTS.get(self.kind)
        if fixed and "point" in self.model_fields_set and self.point != fixed:
            raise ValueError(f"a {self.kind} strikes at point {fixed}; remove 'point'")
        if self.kind in _WRITER and self.rank:
            raise ValueError(f"a {self.kind} strikes rank 0, which writes; remove 'rank'")
        if self.where == "setup" and self.step:
            raise ValueError("the setup is passed before step 1; write 'step': 0")
        if self.every and "once" in self.model_fields_set and self.once:
            raise ValueError("'every' and 'once' exclude each other; remove one")
        return self

    @property
    def where(self) -> Point:
        """Return the point at which it strikes."""
        return _FIXED_POINTS.get(self.kind, self.point)


class _Faults(Spec):
    faults: tuple[Fault, ...]


def parse(text: str) -> tuple[Fault, ...]:
    """Read the value of PIPELINE_FAULTS.

    Raises:
        Misuse: it is no JSON list of faults; names each wrong field, its value and the remedy.
    """
    example = '[{"kind": "kill", "rank": 1, "step": 24}]'
    try:
        values = json.loads(text)
    except ValueError as error:
        raise Misuse(f"{VARIABLE}: value {text!r} is not JSON ({error}); write {example}") from None
    if not isinstance(values, list):
        raise Misuse(f"{VARIABLE}: value {text!r} is no list; write {example}")
    return _Faults.parse({"faults": values}, VARIABLE).faults


@dataclass
class _Plan:
    """The faults of this process, and what it has met of them."""

    faults: tuple[Fault, ...]
    folder: Path
    met: set[int] = field(default_factory=set)
    told: set[int] = field(default_factory=set)

    def due(self, point: str, step: int, rank: int) -> Iterator[tuple[int, Fault]]:
        """Give the faults that wait at this point, with their numbers."""
        for number, fault in enumerate(self.faults):
            here = (fault.where, fault.rank) == (point, rank) and step >= fault.step
            if here and number not in self.met:
                yield number, fault

    def take(self, number: int, fault: Fault, step: int) -> bool:
        """Note that a fault strikes, and say it once; False where an earlier attempt met it."""
        if number in self.told:
            return True
        if fault.every:
            self.told.add(number)
        else:
            self.met.add(number)
            if fault.once and not self._claim(number, fault, step):
                return False
        when = f"at step {step}" if not fault.every else f"at each step from {step} on"
        what = f"rank {fault.rank}: fault on purpose: {fault.kind}"
        print(f"{what} {when} ({fault.where})", flush=True)
        return True

    def _claim(self, number: int, fault: Fault, step: int) -> bool:
        mark = self.folder / f"{number:03d}-{fault.kind}-rank{fault.rank}-step{fault.step}.json"
        try:
            handle = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with open(handle, "w") as file:
            json.dump({"step": step, "attempt": this_attempt(), "time_s": time.time()}, file)
        return True


_plan: _Plan | None = None
"""Set by `begin` for the life of the process; None: no faults, and no work."""


def begin(folder: RunFolder) -> None:
    """Read PIPELINE_FAULTS for this process; nothing happens where it is not set.

    Raises:
        Misuse: see `parse`.
    """
    global _plan
    _plan = None
    if VARIABLE in os.environ:
        _plan = _Plan(parse(os.environ[VARIABLE]), folder.path / "faults")
        _plan.folder.mkdir(parents=True, exist_ok=True)


def hit(point: Point, step: int, rank: int) -> bool:
    """Pass a point; True where the caller is to spoil its loss.

    Raises:
        RuntimeError: the fault is `raise`.
    """
    if _plan is None:
        return False
    spoils = False
    for number, fault in _plan.due(point, step, rank):
        if fault.kind not in _WRITER and _plan.take(number, fault, step):
            spoils = _strike(fault) or spoils
    return spoils


def each(items: Iterator[Item], point: Point, first_step: int, rank: int) -> Iterator[Item]:
    """Give `items` out, one for each step from `first_step`; `point` is passed before each."""
    return items if _plan is None else _passing(items, point, first_step, rank)


def wrote(file: Path, step: int) -> None:
    """Tell that a checkpoint's file is written, in the folder of those written before it.

    Raises:
        OSError: no space is left, with the file cut where the space ended.
    """
    if _plan is None:
        return
    for number, fault in _plan.due("checkpoint", step, 0):
        if fault.kind not in _WRITER:
            continue
        size = sum(path.stat().st_size for path in file.parent.iterdir())
        if fault.bytes is not None and size >= fault.bytes and _plan.take(number, fault, step):
            _cut(file, size - fault.bytes)
            if fault.kind == "cut":
                _kill()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def _passing(items: Iterator[Item], point: Point, step: int, rank: int) -> Iterator[Item]:
    while True:
        hit(point, step, rank)
        try:
            item = next(items)
        except StopIteration:
            return
        yield item
        del item  # or a step's memory would be in use while the next one is waited for
        step += 1


def _strike(fault: Fault) -> bool:
    """Do what the fault says; True where the loss is to be spoiled."""
    if fault.kind in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.kind])
    elif fault.kind == "raise":
        raise RuntimeError(f"fault on purpose at step {fault.step} ({VARIABLE})")
    elif fault.kind == "exit":
        os._exit(fault.code)
    elif fault.seconds is not None:
        time.sleep(fault.seconds)
    return fault.kind == "nan"


def _cut(file: Path, excess: int) -> None:
    os.truncate(file, max(0, file.stat().st_size - excess))


def _kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("outlived SIGKILL")
