"""The command line: fast, and every wrong use ends with 2 and a message."""

import os
import subprocess
import sys

import pytest

from launch.__main__ import main


def test_help_answers_at_once(repo):
    command = [sys.executable, "-m", "launch", "--help"]
    times, said = [], ""
    for _ in range(3):
        before = os.times()
        said = subprocess.check_output(command, cwd=repo, text=True)
        after = os.times()  # of the processor: a busy machine makes anything wait
        times.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(times) < 0.5
    for name in ("supervise", "local", "submit", "preflight"):
        assert name in said


def test_the_launcher_never_loads_torch(repo):
    code = "import launch.supervise, launch.preflight, launch.submit, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "mlflow", "submitit"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["local", "--ranks", "2", "fly", "x"], "command 'fly': expected one of train"),
        (["local", "--ranks", "2", "train"], "the config is missing"),
        (["supervise", "--local", "2", "train"], "the config is missing"),
        (["local", "--ranks", "2", "train", "none.yaml"], "none.yaml: no such config file"),
        (["supervise", "transfer", "m", "s"], "SLURM_JOB_ID is not set"),
        (["submit", "none.yaml"], "none.yaml: no such config file"),
        (["preflight", "none.yaml"], "none.yaml: no such config file"),
    ],
)
def test_wrong_use_ends_with_2_and_names_it(arguments, named, capsys, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("ranks", ["0", "-1", "two"])
def test_a_number_of_ranks_is_one_or_more(ranks, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["local", "--ranks", ranks, "train", "c.yaml"])
    assert stop.value.code == 2 and "--ranks" in capsys.readouterr().err
