"""`python -m launch status RUN ...`: how runs are, in one screen each.

    python -m launch status v2_l_21k            a name below runs/, or the folder of a run
    python -m launch status --watch 10 RUN      again every 10 seconds
    python -m launch status --json RUN          for programs: one object a line

It only reads, loads no torch, and says what is missing instead of failing.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.run_facts import read_facts
from launch.run_screen import screen, values
from launch.run_state import judge
from pipeline.run.folder import DONE
from pipeline.spec import Misuse

ROOT = Path(__file__).resolve().parent.parent
MARKS = ("recipe.yaml", "attempts", "checkpoints", "lease.json")
"""What a folder of a run has at least one of."""

_CLEAR = "\x1b[H\x1b[2J"


def status(names: Sequence[str], as_json: bool = False, watch_s: float | None = None) -> int:
    """Print how the runs are; with `watch_s` until Ctrl-C.

    Raises:
        Misuse: there is no such run; names those that exist.
    """
    folders = [find(name) for name in names]
    try:
        while True:
            text = "\n".join(_text(folder, as_json) for folder in folders)
            clear = watch_s is not None and not as_json and sys.stdout.isatty()
            print((_CLEAR if clear else "") + text, flush=True)
            if watch_s is None:
                return DONE
            time.sleep(watch_s)
    except KeyboardInterrupt:
        return DONE


def find(name: str) -> Path:
    """Return the folder of a run by its path or its name.

    Raises:
        Misuse: as `status`.
    """
    bases = list(dict.fromkeys((Path("runs").absolute(), ROOT / "runs")))
    for path in (Path(name).absolute(), *(base / name for base in bases)):
        if _is_run(path):
            return path
    known = sorted({path.name for base in bases if base.is_dir() for path in base.iterdir()
                    if _is_run(path)})  # fmt: skip
    there = ", ".join(known) if known else "none"
    places = " and ".join(map(str, bases))
    raise Misuse(
        f"run '{name}': no folder of a run, neither here nor in {places}; those there: {there} "
        "(a job that has never begun has none yet; squeue shows it)"
    )


def _is_run(path: Path) -> bool:
    return any((path / mark).exists() for mark in MARKS)


def _text(folder: Path, as_json: bool) -> str:
    facts = read_facts(folder)
    judged = judge(facts)
    return json.dumps(values(facts, judged)) if as_json else screen(facts, judged) + "\n"
