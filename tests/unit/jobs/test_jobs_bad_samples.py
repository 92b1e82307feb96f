"""A training over shards with damaged images: counted, named, and ended when over budget."""

import shutil
from pathlib import Path

import pytest

from pipeline.data.index import SplitIndex
from pipeline.data.manifest import load_manifest
from pipeline.run.folder import RunFolder, Status
from pipeline.tracking.events import read_events

BAD = (3, 40, 71)
POLICY = "loader.bad={policy: budget, budget: 0.1}"
WHOLE_EPOCHS = "length={steps: 9}"
"""9 steps of 16 are two epochs of 72 images."""


@pytest.fixture
def damaged(low_digits: Path, tmp_path: Path) -> Path:
    """A copy of the shards with a flipped bit in three training images."""
    data = tmp_path / "data"
    shutil.copytree(low_digits, data)
    index = SplitIndex(data, load_manifest(data), "train")
    for sample_id in BAD:
        tar = index.tar(index.locate(sample_id)[0])
        raw = bytearray(tar.read_bytes())
        raw[int(index.entry(sample_id)["offset"]) + 150] ^= 8
        tar.write_bytes(raw)
    return data


def counts(folder: RunFolder) -> list[float]:
    """Return the recorded number of bad samples after each step."""
    values = [e.values["values"] for e in read_events(folder.spool) if e.kind == "metrics"]
    return [float(v["data/bad_samples"]) for v in values if "data/bad_samples" in v]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_counted_in_the_metrics_and_named_once_in_the_log(
    small_train, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    settings = (POLICY, WHOLE_EPOCHS, "tracking.every_steps=1", f"loader.workers={workers}")
    assert small_train(damaged, "name=bad", *settings) == 0
    found = counts(RunFolder(tmp_path / "runs" / "bad"))
    assert found == sorted(found) and found[-1] == 2 * len(BAD), "each one in both epochs"
    output = capsys.readouterr().out
    named = [line for line in output.splitlines() if "stands in for a bad one" in line]
    assert len(named) == len(BAD)
    assert all(line.startswith("rank 0: sample ") and "crc32c" in line for line in named)
    assert "bad samples 6" in output


def test_a_spent_budget_fails_the_attempt_and_names_shard_and_field(
    small_train, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PIPELINE_ATTEMPT", "0")
    assert small_train(damaged, "name=bad", WHOLE_EPOCHS, POLICY.replace("0.1", "0.02")) == 1
    error = capsys.readouterr().err
    assert "loader.bad.budget 0.02" in error and f"first here: {damaged}" in error
    outcome = RunFolder(tmp_path / "runs" / "bad").read_outcome(0)
    assert outcome is not None
    assert outcome.status == Status.FAILED and "could not be used" in outcome.reason


def test_a_whole_data_set_counts_none(
    small_train, low_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_train(low_digits, "name=good", POLICY, "tracking.every_steps=1") == 0
    assert set(counts(RunFolder(tmp_path / "runs" / "good"))) == {0.0}
    assert "bad" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loader.bad.budget=2", ["loader.bad.budget", "less than 1"]),
        ("loader.bad.policy=skip", ["loader.bad.policy", "'strict' or 'budget'"]),
        ("loader.bad.limit=3", ["loader.bad.limit", "unknown"]),
    ],
)
def test_wrong_settings_are_named(
    small_train, low_digits: Path, capsys: pytest.CaptureFixture[str], override, words
) -> None:
    assert small_train(low_digits, "name=bad", override) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words)
