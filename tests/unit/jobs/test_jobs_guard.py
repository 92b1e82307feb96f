"""A training that diverges goes back, says so, and in the end says what to do."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.jobs.train import train
from pipeline.run.folder import RunFolder, Status
from pipeline.tracking.events import read_events

SETTINGS = (
    "length={steps: 16}",
    "lr={kind: constant, peak: 1e30, warmup_steps: 4}",
    "stages={kind: fixed, px: 16, micro_batches: 2}",
    "batch.global_size=32",
    "loader.workers=0",
    "checkpoint={every_steps: 2}",
    "evaluate={every_steps: 16}",
    "tracking={enabled: false, every_steps: 1}",
    "guard={max_bad_steps: 1, max_rollbacks: 1}",
)


@pytest.mark.slow
def test_a_rate_that_is_too_high_ends_the_attempt_with_the_remedy(
    repo: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*SETTINGS, f"data={digits}", f"runs={tmp_path}", "name=high"]
    assert train(repo / "configs" / "demo.yaml", overrides, accept_changes=False) == 1
    folder = RunFolder(tmp_path / "high")
    outcome = folder.read_outcome(0)
    assert outcome is not None and outcome.status is Status.FAILED
    assert "guard.max_rollbacks is 1" in outcome.reason and "lr.peak" in outcome.reason
    printed = capsys.readouterr().out
    assert re.search(r"going back to step \d+ and leaving out batches \d+ to \d+", printed)
    assert "left out: the loss is" in printed
    events = list(read_events(folder.spool))
    tags: dict[str, Any] = {k: v for e in events if e.kind == "tags" for k, v in e.values.items()}
    assert any(key.startswith("guard.window.") for key in tags)
    assert any(event.kind == "rewind" for event in events)
    metrics = [e.values["values"] for e in events if e.kind == "metrics"]
    assert max(float(values["guard/bad_steps"]) for values in metrics) >= 2
