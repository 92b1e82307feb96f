"""Whose fault the end of an attempt was, what is remembered of it, and for how long."""

import errno
import json
import os
import time
from dataclasses import replace
from functools import partial

import pytest

from launch.blame import Places, blamed
from launch.strikes import FORGET_S, Strikes
from pipeline.data.reader import BrokenSample
from pipeline.jobs.train import reason_of
from pipeline.run.beats import Beat, Section
from pipeline.run.folder import RunFolder
from pipeline.run.hang import verdict
from pipeline.run.lease import LeaseHeld
from pipeline.spec import Failure

PLACES = Places(["gpu1", "gpu2", "gpu3"], 2)
LEFT_2 = "srun ended with 1: gpu2: task 3: Exited with exit code 1"


@pytest.mark.parametrize(
    ("status", "reason", "nodes"),
    [
        ("crashed", "srun ended with 137: gpu2: task 3: Killed; gpu1: task 0: Terminated", "gpu2"),
        ("crashed", f"gpu3: RuntimeError: closed by peer; {LEFT_2}", "gpu2"),
        ("crashed", f"gpu3: RuntimeError: CUDA error: uncorrectable ECC; {LEFT_2}", "gpu3"),
        ("crashed", f"gpu2: E: Connection reset; AcceleratorError: CUDA error; {LEFT_2}", "gpu1"),
        ("crashed", "gpu1.site.org: OSError: disk on fire; srun ended with 1", "gpu1"),
        ("crashed", LEFT_2, "gpu2"),
        ("crashed", f"gpu2: ValueError: poison; {LEFT_2}", ""),
        ("crashed", f"gpu2: BrokenSample: a.tar: sample 'k'; {LEFT_2}", ""),
        ("crashed", "srun ended with 1: gpu2: task 3: Exited with exit code 75", ""),
        ("crashed", "another: OSError: not of this job", ""),
        ("hung", "hang: rank 5 on box in section step at step 7", "gpu3"),
        ("crashed", "gpu1: hang: rank 3 on gpu2.site.org in section data at step 7", "gpu2"),
        ("hung", "hang: rank 9 on box in section step at step 7", ""),
        ("lost", "Task launch for StepId=1.1 failed on node gpu3: Communication failure", "gpu3"),
        ("lost", "srun ended with 1: gpu1: task 0: Killed; Node failure on gpu2", "gpu2"),
        ("lost", "only 3 ranks answered in 9 s; silent: rank 2-3, 5", "gpu2 gpu3"),
        ("lost", "only 0 ranks answered in 9 s; silent: rank 0-5", ""),
        ("stopped", "SIGUSR2; srun ended with 137: gpu2: task 3: Killed", ""),
        ("saved", "SIGTERM", ""),
    ],
)
def test_a_node_is_blamed_for_its_own_ranks_alone(status, reason, nodes):
    assert blamed(status, reason, PLACES) == nodes.split()


FAULTLESS = (
    Failure("steps 3 to 14: the loss was not finite; lower lr.peak"),
    LeaseHeld("runs/a/lease.json: another job took this run over; this one must stop"),
    BrokenSample("a.tar: sample 'k'"),
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a"),
    OSError("the last checkpoint, at step 9, could not be written"),
    KeyError("conv.weight"),
)


@pytest.mark.parametrize("error", FAULTLESS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("rank", [0, 3])
def test_what_any_node_would_meet_is_no_nodes_fault(tmp_path, monkeypatch, error, rank):
    """In the words that a rank really leaves; rank 0's come through the outcome file."""
    monkeypatch.setenv("SLURMD_NODENAME", "gpu2")
    run, words = RunFolder(tmp_path / "run"), reason_of(error)
    run.write_rank_error(4, words)
    words = run.read_rank_error(4) if rank else words
    assert blamed("crashed", f"{words}; {LEFT_2}", PLACES) == []


def test_the_watchdogs_own_words_name_the_node(tmp_path):
    run = RunFolder(tmp_path)
    beats = [Beat(rank, "box", 1, Section.STEP, 9, 50.0, 100.0, 0, 7) for rank in range(6)]
    told = partial(verdict, run, world=6, finder=beats[0], waited_s=9, limit="", every_s=1.0)
    behind = replace(beats[5], host="gpu3", section=Section.DATA)
    assert blamed("hung", told(beats=[*beats[:5], behind])[0], PLACES) == ["gpu3"]
    assert blamed("hung", told(beats=beats[:4])[0], PLACES) == ["gpu3"], "ranks 4 and 5 never came"
    assert blamed("hung", told(beats=beats)[0], PLACES) == [], "all equally far: the network"


def test_without_nodes_nobody_is_blamed():
    reason = "RuntimeError: CUDA error; rank 1 was killed by SIGKILL"
    assert blamed("crashed", reason, Places((), 2)) == []


def test_a_rank_says_the_name_that_slurm_has_for_its_node(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "gpu3")
    run = RunFolder(tmp_path / "run")
    run.write_rank_error(4, "OSError: disk on fire")
    assert run.read_rank_error(4) == "gpu3: OSError: disk on fire"
    assert blamed("crashed", run.read_rank_error(4), PLACES) == ["gpu3"]


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    (run.path / "attempts").mkdir(parents=True)
    return run


def test_two_strikes_leave_a_node_out_and_are_told_with_their_causes(folder):
    Strikes(folder).note(["gpu1", "gpu2"], 3, "lost: power cut")
    assert Strikes(folder).left_out() == {}
    Strikes(folder).note(["gpu2"], 5, "crashed: Killed")
    assert Strikes(folder).left_out() == {
        "gpu2": "attempt 3: lost: power cut; attempt 5: crashed: Killed"
    }
    assert Strikes(folder).among(["gpu1", "gpu3"]) == {}
    saved = json.loads((folder.path / "attempts" / "nodes.json").read_text())
    assert [strike["attempt"] for strike in saved["gpu2"]] == [3, 5]
    assert time.time() - saved["gpu1"][0]["time_s"] < 60


def test_a_strike_is_forgotten_after_a_day_or_with_the_file(folder):
    file = folder.path / "attempts" / "nodes.json"
    old = {"attempt": 1, "time_s": time.time() - FORGET_S - 1, "cause": "crashed"}
    file.write_text(json.dumps({"gpu1": [old, {**old, "attempt": 2}]}))
    assert Strikes(folder).by_node() == {}
    Strikes(folder).note(["gpu2"], 3, "lost")
    Strikes(folder).note(["gpu2"], 4, "lost")
    assert list(Strikes(folder).left_out()) == ["gpu2"], "and the old ones are gone"
    file.unlink()
    assert Strikes(folder).left_out() == {}


@pytest.mark.parametrize("text", ["", "[1]", '{"gpu1": 3}', '{"gpu1": [{"a": 1}]}', "{"])
def test_a_file_that_cannot_be_read_counts_as_no_strike(folder, text):
    (folder.path / "attempts" / "nodes.json").write_text(text)
    assert Strikes(folder).left_out() == {}
