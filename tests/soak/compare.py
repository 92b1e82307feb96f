"""Whether a training in the storm is the one in peace: weights, sample ids, points in MLflow."""

import filecmp
import json
import subprocess
import sys
from pathlib import Path

from pipeline.checkpoint.state import equal
from pipeline.checkpoint.store import read
from pipeline.run.folder import RunFolder
from pipeline.tracking.client import connect
from pipeline.tracking.events import Point, history
from tests.soak.cluster import REPO

Ids = dict[tuple[int, int], set[tuple[int, ...]]]
EXPERIMENT = "demo"


def differences(quiet: RunFolder, storm: RunFolder, last: str, ids: tuple[Path, Path]) -> list[str]:
    """Name what differs between the runs' final states, and between the ids of their steps."""
    a, b = quiet.path / last, storm.path / last
    if not (b / "manifest.json").is_file():
        return [f"{b} is missing"]
    found = [f"{name} has other bytes in {a} and {b}" for name in different_files(a, b)]
    if not equal(read(a), read(b)):
        found.append(f"the final states differ: {a}, {b}")
    if found and (step := first_other_loss(quiet, storm)):
        found.append(f"the first step with another loss is {step}")
    return found + different_ids(*map(ids_by_step, ids))


def different_files(a: Path, b: Path) -> list[str]:
    """Name the files of tensors (weights, buffers, average, slots) that differ in any byte."""
    names = {path.name for folder in (a, b) for path in folder.glob("*.safetensors")}
    assert names, f"{a} and {b} hold no tensors"
    same, *_ = filecmp.cmpfiles(a, b, names, shallow=False)
    return sorted(names - set(same))


def first_other_loss(quiet: RunFolder, storm: RunFolder) -> int | None:
    """Return the first step whose loss is not the quiet run's; None where all are the same."""
    a, b = (
        {point.step: point.value for point in history(run.spool).get("train/loss", [])}
        for run in (quiet, storm)
    )
    return min((step for step in a.keys() | b.keys() if a.get(step) != b.get(step)), default=None)


def ids_by_step(folder: Path) -> Ids:
    """Return, for each (step, micro-batch), all lists of ids that any attempt was shown."""
    found: Ids = {}
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            try:
                step, index, ids = json.loads(line)
            except ValueError:
                continue  # a killed rank's last line
            found.setdefault((step, index), set()).add(tuple(ids))
    return found


def different_ids(quiet: Ids, storm: Ids) -> list[str]:
    """Name the first micro-batches whose samples are not those of the quiet run, all attempts."""
    keys = sorted(key for key in quiet.keys() | storm.keys() if quiet.get(key) != storm.get(key))
    return [
        f"step {step}, micro-batch {index}: samples {quiet.get((step, index))} in peace, "
        f"{storm.get((step, index))} in the storm"
        for step, index in keys[:3]
    ] + ([f"{len(keys)} micro-batches had other samples"] if keys else [])


def send_the_rest(storm: RunFolder) -> list[str]:
    """Send what the last sender left, as a user would; returns what went wrong."""
    command = [sys.executable, "-m", "pipeline", "sync", str(storm.path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    return [] if done.returncode == 0 else [f"sync ended with {done.returncode}: {done.stderr}"]


def different_points(quiet: RunFolder, uri: str) -> list[str]:
    """Name what MLflow has too much, too little or otherwise than the quiet run's own record."""
    client = connect(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    if len(runs) != 1:
        return [f"MLflow has {len(runs)} runs of one training"]
    found, run = [], runs[0].info
    if run.status != "FINISHED":
        found.append(f"MLflow says {run.status} of a training that is done")
    for key, points in history(quiet.spool).items():
        sent = sorted(
            (point.step, point.value) for point in client.get_metric_history(run.run_id, key)
        )
        found += different_series(key, points, sent)
    return found


def different_series(key: str, points: list[Point], sent: list[tuple[int, float]]) -> list[str]:
    """Tell how a series differs; of pace, which a kill cuts within its window, nothing is asked."""
    if key.startswith("pace/"):
        return []
    steps, wanted = [step for step, _ in sent], [point.step for point in points]
    if steps != wanted:
        doubled = sorted({step for step in steps if steps.count(step) > 1})
        lost = sorted(set(wanted) - set(steps))
        return [
            f"{key}: {len(sent)} points in MLflow instead of {len(points)}; "
            f"doubled {doubled[:5]}, lost {lost[:5]}"
        ]
    if not key.startswith("speed/") and [value for _, value in sent] != [p.value for p in points]:
        return [f"{key}: values differ"]
    return []
