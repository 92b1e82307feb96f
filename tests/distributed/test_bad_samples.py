"""Ranks that meet bad samples keep step, count together and stop together."""

import shutil
from pathlib import Path

import pytest

from pipeline.run.folder import RunFolder
from pipeline.tracking.events import read_events

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SETTINGS = (
    "length={steps: 40}",
    "lr={kind: constant, peak: 0.005}",
    "batch.global_size=64",
    "stages={kind: fixed, px: 16, micro_batches: 4}",
    "loader.workers=1",
    "checkpoint={every_steps: 40}",
    "evaluate={every_steps: 40}",
    "tracking.every_steps=1",
)


@pytest.fixture
def damaged(digits: Path, tmp_path: Path) -> Path:
    """A copy of the digits whose first training shard lost its last tenth."""
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    tar = min((data / "train").glob("*.tar"))
    raw = tar.read_bytes()
    tar.write_bytes(raw[: len(raw) * 9 // 10])
    return data


def counts(folder: RunFolder) -> list[float]:
    values = [e.values["values"] for e in read_events(folder.spool) if e.kind == "metrics"]
    return [float(v["data/bad_samples"]) for v in values if "data/bad_samples" in v]


def test_any_number_of_ranks_counts_the_same_bad_samples(launcher, damaged, read_losses) -> None:
    launcher.data = damaged
    policy = "loader.bad={policy: budget, budget: 0.3}"
    runs = [launcher.run(f"world{n}", n, *SETTINGS, policy) for n in (1, 2)]
    assert counts(runs[0]) == counts(runs[1])
    assert counts(runs[0])[-1] > 50
    losses = [read_losses(run) for run in runs]
    assert all(abs(losses[0][step] - losses[1][step]) < 0.01 for step in range(1, 11))


def test_all_ranks_end_when_the_budget_of_all_is_spent(launcher, damaged) -> None:
    launcher.data = damaged
    ranks = launcher.start("spent", 2, *SETTINGS, "loader.bad={policy: budget, budget: 0.02}")
    assert ranks.wait() == [1, 1]
    text = ranks.text()
    reports = {line[line.index("error: ") :].split(" were ")[0] for line in text.splitlines()
               if "could not be used" in line and "error: " in line}  # fmt: skip
    assert len(reports) == 1, "the same figures on both ranks"
    assert text.count("stands in for a bad one") > 20
