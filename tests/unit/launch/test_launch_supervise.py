"""How a job begins: limits, the launcher, the checks; whatever fails is told, never a traceback."""

import os

import pytest

from launch import supervise as module
from launch.__main__ import main
from launch.ledger import Ledger
from launch.limits import LIMITS_S, limit_s
from launch.rollcall import Absent, LostRanks
from launch.strikes import Strikes
from launch.supervise import supervise
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse

SCONTROL = """
if [ "$2" = hostnames ]; then echo gpu1 gpu2; exit; fi
case "$*" in
  *"show node"*) {node};;
  *) echo JobId=12 JobState=RUNNING NumNodes=2;;
esac
"""


@pytest.fixture
def folder(config, tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "counted")


@pytest.fixture
def job(config, programs, monkeypatch):
    """A job of two nodes: `job(begin)` supervises, with `begin` in place of the checks."""
    for name, value in {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "gpu[1-2]",
                        "SLURM_JOB_NUM_NODES": "2"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    programs("scontrol", SCONTROL.format(node="echo NodeAddr=10.0.0.1"))

    def run(begin, *overrides: str) -> int:
        monkeypatch.setattr(module, "check_start", begin)
        return supervise(["train", str(config), *overrides])

    return run


@pytest.mark.parametrize("name", LIMITS_S)
@pytest.mark.parametrize("value", ["abc", "-1", "nan", "inf"])
def test_a_limit_that_is_no_time_is_refused_before_a_rank_starts(
    name, value, monkeypatch, capsys, config
):
    monkeypatch.setenv(name, value)
    assert main(["local", "--ranks", "2", "train", str(config)]) == 2
    error = capsys.readouterr().err
    assert f"{name} is '{value}': expected seconds" in error and "slurm/site.env" in error


@pytest.mark.parametrize("value", ["abc", "0", "-0.5", "1.01", "nan"])
def test_a_part_that_is_none_is_refused_before_a_rank_starts(value, monkeypatch, capsys, config):
    monkeypatch.setenv("LEAST_WORLD", value)
    assert main(["local", "--ranks", "2", "train", str(config)]) == 2
    error = capsys.readouterr().err
    assert f"LEAST_WORLD is '{value}': expected a part of the ranks" in error


def test_limits_have_defaults_and_an_empty_one_is_none():
    assert limit_s("SAVE_S", {}) == limit_s("SAVE_S", {"SAVE_S": ""}) == 150
    assert limit_s("SAVE_S", {"SAVE_S": "7.5"}) == 7.5


def test_a_controller_that_is_silent_for_a_moment_ends_no_job(job, programs, tmp_path):
    mark = tmp_path / "again"
    node = f"[ -e {mark} ] && echo NodeAddr=10.0.0.1 || {{ touch {mark}; exit 1; }}"
    programs("scontrol", SCONTROL.format(node=node))

    def begun(launcher, target):
        assert launcher.address == "10.0.0.1"
        raise Absent("begun")

    with pytest.raises(Absent, match="begun"):
        job(begun)


def test_a_controller_that_stays_silent_is_told_with_the_remedy(job, programs, config, capsys):
    calls = programs("scontrol", SCONTROL.format(node="echo 'Unable to contact' >&2; exit 1"))
    assert main(["supervise", "train", str(config)]) == 1
    error = capsys.readouterr().err
    assert "scontrol --oneliner show node gpu1: Unable to contact; submit the same" in error
    assert calls.read_text().count("show node") == 3


def test_nodes_that_struck_are_called_too_where_slurm_does_not_tell_of_the_others(
    job, folder, programs, tmp_path, capsys
):
    (folder.path / "attempts").mkdir(parents=True)
    for number in range(2):
        Strikes(folder).note(["gpu1"], number, "crashed")
    programs("scontrol", SCONTROL.format(
        node='case "$*" in *gpu2*) exit 1;; *) echo NodeAddr=10.0.0.1;; esac'))  # fmt: skip

    def begun(launcher, target):
        assert launcher.nodes == ["gpu1", "gpu2"]
        raise Absent("begun")

    with pytest.raises(Absent, match="begun"):
        job(begun)
    assert "gpu1 struck twice and must answer all the same: scontrol" in capsys.readouterr().out


@pytest.mark.parametrize("error", [LostRanks("silent: rank 1"), Absent("srun"), Misuse("rank 1")])
def test_a_signal_in_the_checks_hands_the_job_back_and_blames_no_node(job, folder, error, tmp_path):
    def begun(launcher, target):
        os.kill(os.getpid(), 12)
        raise error

    assert job(begun) == 75
    assert "requeue 12" in (tmp_path / "scontrol.calls").read_text()
    assert Ledger(folder).attempts() == [] and Strikes(folder).by_node() == {}


def test_a_folder_that_takes_nothing_is_named_where_other_nodes_are_asked_for(job, folder, capsys):
    folder.path.parent.mkdir()
    folder.path.write_text("in the way")

    def begun(launcher, target):
        raise LostRanks("silent: rank 1")

    assert job(begun) == 1
    assert f"FAILED: {folder.path}" in (out := capsys.readouterr().out)
    assert "make room or give rights there" in out
