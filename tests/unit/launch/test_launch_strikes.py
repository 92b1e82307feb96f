"""Whose fault the end of an attempt was, what is remembered of it, and for how long."""

import json
import time

import pytest

from launch.blame import Places, blamed
from launch.strikes import FORGET_S, Strikes
from pipeline.run.folder import RunFolder

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
