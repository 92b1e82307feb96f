"""Checkpoints on disk: written so that a crash at any byte leaves the older ones readable.

    checkpoints/step-000012000/weights.safetensors buffers... ema... slots...   the tensors
                               state.json       step, loss scale, best metric: for people too
                               labels.json ...  what a run gives along (`Store.papers`)
                               manifest.json    size and sha256 of each file, written last
                LATEST                          the newest committed one

A checkpoint is written into `step-N.WRITER.tmp`, synced, sealed by its manifest, and renamed: a
writer that comes back from the dead has a folder of its own. Reading takes the newest one whose
files match its manifest and says which were passed over.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.checkpoint.state import PARTS, TrainState, state_from
from pipeline.run import faults
from pipeline.run.files import read_json, sync_folder, write_atomically, write_json
from pipeline.spec import Failure

STATE = "state.json"
PATIENCE_S = 60.0
"""NFS clients keep what they know of a folder for as long (acdirmax)."""
_NAME = re.compile(r"step-(\d{9})")


@dataclass(frozen=True)
class Store:
    """The checkpoints of one run; `fence` raises where this process may not write any more.

    `papers` go into every checkpoint: JSON by file name, as the label space that its head means.
    `writer` is the token of the lease, which no other writer of the run has.
    """

    folder: Path
    keep: int
    fence: Callable[[], None]
    papers: Mapping[str, Any] = field(default_factory=dict)
    writer: int = 0

    def prepare(self) -> None:
        """Make the folder and clear what killed writers left behind.

        One that still lives may write into its folder meanwhile; the next writer clears that.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def commit(self, state: TrainState, facts: dict[str, Any]) -> Path:
        """Write `state` (on the host) as the newest checkpoint; a no-op where it is there.

        Raises:
            OSError: the disk is full or read-only; nothing half-written stays.
            LeaseHeld: another job took the run over.
        """
        self.fence()
        final = self.folder / f"step-{state.step:09d}"
        if _damage(final) is None:
            self._point_to(final)
            return final
        temporary = final.with_name(f"{final.name}.{self.writer}.tmp")
        try:
            self._write(temporary, state, facts)
            self.fence()
            if final.exists():
                shutil.rmtree(final)  # damaged: its manifest does not match
            os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.folder)
        self._point_to(final)
        self._prune(state.best_step)
        return final

    def newest(self, say: Callable[[str], None]) -> Path | None:
        """Return the newest checkpoint that verifies; tell `say` of each damaged one."""
        for path in sorted(self._all(), reverse=True):
            damage = _damage(path)
            if damage is None:
                return path
            say(f"{path}: not used: {damage}; trying the one before")
        return None

    def _write(self, folder: Path, state: TrainState, facts: dict[str, Any]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for part, tensors in state.tensors().items():
            try:
                save_file(tensors, folder / f"{part}.safetensors")
            except SafetensorError as error:  # it wraps the system's error in its own
                raise OSError(f"{folder / part}.safetensors: {error}") from error
            faults.wrote(folder / f"{part}.safetensors", state.step)
        write_json(folder / STATE, {**state.scalars(), "facts": facts})
        faults.wrote(folder / STATE, state.step)
        for name, paper in self.papers.items():
            write_json(folder / name, paper)
        files = {}
        for path in sorted(folder.iterdir()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        write_json(folder / "manifest.json", {"files": files})
        faults.wrote(folder / "manifest.json", state.step)
        sync_folder(folder)

    def _point_to(self, final: Path) -> None:
        write_atomically(self.folder / "LATEST", final.name + "\n")

    def _prune(self, best_step: int | None) -> None:
        paths = sorted(self._all(), reverse=True)
        for path in paths[self.keep :]:
            if int(path.name.removeprefix("step-")) != best_step:
                shutil.rmtree(path, ignore_errors=True)

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]


def await_whole(path: Path, patience_s: float = PATIENCE_S) -> Path:
    """Return the checkpoint that rank 0 chose, once this host sees all of its files.

    A network file system may show a folder to other hosts some seconds late.

    Raises:
        Failure: it does not come into sight.
    """
    deadline = time.monotonic() + patience_s
    while missing := _missing(path):
        if time.monotonic() > deadline:
            raise Failure(
                f"{path}: rank 0 reads this checkpoint, but {socket.gethostname()} does not see "
                f"{missing} after {patience_s:.0f} s; is field 'runs' on a file system that all "
                "nodes share?"
            )
        time.sleep(0.1)
        for _ in path.parent.glob("step-*"):  # listing makes a client ask the server anew
            break
    return path


def read(path: Path) -> TrainState:
    """Read a committed checkpoint; `Store.newest` has verified it."""
    tensors = {part: load_file(path / f"{part}.safetensors") for part in PARTS}
    return state_from(_scalars(path), tensors, str(path / STATE))


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts that `commit` recorded."""
    return _scalars(path)["facts"]


def _scalars(path: Path) -> dict[str, Any]:
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing(path: Path) -> str | None:
    """Name a file of a checkpoint that is not here in its full size; None where all are."""
    try:
        manifest = read_json(path / "manifest.json")
        if not isinstance(manifest, dict):
            return "manifest.json"
        for name, facts in manifest["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != facts["bytes"]:
                return name
    except OSError as error:  # a stale handle of NFS
        return str(error)
    return None


def _damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint folder; None where it is whole."""
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict):
        return "manifest.json is missing or not JSON"
    expected = {f"{part}.safetensors" for part in PARTS} | {STATE}
    if not expected <= set(manifest.get("files", {})):
        return "manifest.json does not list the files of a checkpoint"
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {facts['bytes']}"
        if sha256_of(file) != facts["sha256"]:
            return f"{name} does not match its sha256"
    return None
