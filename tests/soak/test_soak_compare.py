"""The storm's judge sees a wrong sample, a lost point and a doubled one."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.run import faults
from pipeline.run.folder import RunFolder
from pipeline.tracking.events import Point
from pipeline.tracking.spool import Spool
from tests.soak.compare import (
    different_files,
    different_ids,
    different_series,
    first_other_loss,
    ids_by_step,
)
from tests.soak.storm import endless
from tests.soak.throws import KINDS, written_faults


def test_ids_of_all_attempts_are_compared(tmp_path: Path) -> None:
    peace = {(0, 0): {(1, 2)}, (0, 1): {(3, 4)}}
    (tmp_path / "0-1.jsonl").write_text("[0, 0, [1, 2]]\n[0, 1, [3, 4]]\n[1, 0, [5")
    (tmp_path / "1-2.jsonl").write_text("[0, 1, [3, 4]]\n")
    assert ids_by_step(tmp_path) == peace
    assert not different_ids(peace, ids_by_step(tmp_path))
    (tmp_path / "2-3.jsonl").write_text("[0, 1, [4, 3]]\n")
    first, last = different_ids(peace, ids_by_step(tmp_path))
    assert "step 0, micro-batch 1" in first and last == "1 micro-batches had other samples"
    assert different_ids(peace, {(0, 0): {(1, 2)}}), "a step that nobody was shown"


def test_a_bit_that_differs_is_seen_where_the_values_are_equal(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder, zero in zip(folders, (0.0, -0.0), strict=True):
        folder.mkdir()
        save_file({"x": torch.tensor([zero])}, folder / "weights.safetensors")
        save_file({"x": torch.tensor([1.0])}, folder / "slots.safetensors")
    assert different_files(*folders) == ["weights.safetensors"]
    (folders[0] / "ema.safetensors").touch()
    assert different_files(*folders) == ["ema.safetensors", "weights.safetensors"]
    assert not different_files(folders[0], folders[0])


def test_the_first_step_with_another_loss_is_named(tmp_path: Path) -> None:
    runs = [RunFolder(tmp_path / name) for name in "ab"]
    for run, third in zip(runs, (0.25, 0.125), strict=True):
        spool = Spool(run.spool)
        for step, loss in enumerate((1.0, 0.5, third, third), start=1):
            spool.metrics(step, {"train/loss": loss})
        spool.close()
    assert first_other_loss(*runs) == 3
    assert first_other_loss(runs[0], runs[0]) is None


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([(1, 0.5), (2, 0.25)], ""),
        ([(1, 0.5)], "lost [2]"),
        ([(1, 0.5), (2, 0.25), (2, 0.25)], "doubled [2]"),
        ([(1, 0.5), (2, 0.125)], "values differ"),
    ],
)
def test_points_are_compared_one_by_one(sent: list[tuple[int, float]], words: str) -> None:
    found = different_series("train/loss", [Point(1, 0.5, 0), Point(2, 0.25, 1)], sent)
    assert (words in found[0]) if words else not found


def test_every_kind_comes_in_turn_and_the_seed_decides_when() -> None:
    first = list(islice(endless(random.Random(3), 60.0), 1000))
    assert first == list(islice(endless(random.Random(3), 60.0), 1000))
    assert {throw.kind for throw in first[: len(KINDS) + 1]} == set(KINDS)
    assert 50 < sum(throw.gap_s for throw in first) / 1000 < 70


def test_written_faults_are_ones_that_a_rank_takes() -> None:
    drawn = written_faults(random.Random(0), 500, 10_000, 4)
    assert [fault.kind for fault in faults.parse(json.dumps(drawn))] == [
        "nospace", "cut", "nospace", "cut",
    ]  # fmt: skip
