"""The shipped scripts: valid, alike, in step with their configs, started from anywhere."""

import os
import subprocess
from pathlib import Path

import pytest

from launch.ranks import largest_world
from launch.requests import request_of
from launch.target import training

REPO = Path(__file__).resolve().parents[3]
SCRIPTS = sorted((REPO / "launch").glob("*.sh"))
SMALL = ("b0", "b1", "b2", "b3")
NAMES = {
    *(f"v2_{size}_1k" for size in (*SMALL, *"sml")),
    *(f"v2_{s}_21k{end}" for s in (*SMALL, "s", "m", "l", "xl")
      for end in ("", "_released", "_ft1k")),
    *(f"v1_b{number}_1k" for number in range(8)),
}  # fmt: skip


def test_every_published_model_has_its_script():
    assert {path.stem for path in SCRIPTS} == NAMES


@pytest.mark.parametrize(
    "path", [*SCRIPTS, REPO / "slurm" / "job.sh", REPO / "slurm" / "site.env"], ids=lambda p: p.name
)
def test_bash_can_read_it(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_asks_for_what_a_supervised_job_needs(script):
    text = script.read_text()
    for option in (f"--job-name={script.stem}", "--requeue", "--signal=B:USR2@180",
                   "--open-mode=append", "--output=%x-%j.log"):  # fmt: skip
        assert option in text, "a log folder that may be missing fails a job without any log"
    request = request_of(script)
    assert request.ntasks_per_node == request.gpus_per_node, "one rank for each GPU"
    assert request.time and request.cpus_per_task and request.nodes
    assert len(text.splitlines()) <= 14


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_scripts_config_gives_every_rank_work(script, monkeypatch):
    monkeypatch.chdir(REPO)
    target = training(["train", f"configs/{script.stem}.yaml"])
    assert target.recipe.name == script.stem
    ranks = request_of(script).ranks
    assert largest_world(ranks, target.micro_batches) == ranks


@pytest.fixture
def copy(tmp_path):
    """A checkout with a space in its path whose job body only says what it was called with."""
    root = tmp_path / "my checkout"
    (root / "launch").mkdir(parents=True)
    (root / "slurm").mkdir()
    script = root / "launch" / "v2_s_1k.sh"
    script.write_text((REPO / "launch" / "v2_s_1k.sh").read_text())
    (root / "slurm" / "job.sh").write_text('pwd; printf "%s|" "$0" "$@"\n')
    return root


def test_a_script_finds_its_job_body_beside_itself(copy, tmp_path):
    script = copy / "launch" / "v2_s_1k.sh"
    done = subprocess.run(["bash", script, "a=1", "b=x y"], capture_output=True, text=True,
                          cwd=tmp_path)  # fmt: skip
    assert done.stdout.endswith("slurm/job.sh|train|configs/v2_s_1k.yaml|a=1|b=x y|"), done.stderr


def test_a_spooled_copy_asks_slurm_where_the_original_is(copy, tmp_path, programs):
    spooled = tmp_path / "spool" / "job00012" / "slurm_script"
    spooled.parent.mkdir(parents=True)
    spooled.write_text((copy / "launch" / "v2_s_1k.sh").read_text())
    command = f"{copy}/launch/v2_s_1k.sh data=/launch/x b=x y"
    calls = programs("scontrol", f"echo 'JobId=12 JobName=a'; echo '   Command={command}'")
    done = subprocess.run(["bash", spooled, "b=x y"], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "SLURM_JOB_ID": "12"})  # fmt: skip
    assert f"{copy}/slurm/job.sh|train|configs/v2_s_1k.yaml|b=x y|" in done.stdout, done.stderr
    assert calls.read_text() == "show job 12\n"


def test_the_job_body_becomes_the_supervisor_at_the_repositorys_root(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PPID"; pwd; echo "$@"; echo "$SAVE_S"\n')
    python.chmod(0o755)
    env = {**os.environ, "SUPERVISOR_PYTHON": str(python), "SAVE_S": "60"}
    done = subprocess.run(["bash", REPO / "slurm" / "job.sh", "train", "c.yaml", "a=b c"],
                          capture_output=True, text=True, cwd=tmp_path, env=env)  # fmt: skip
    parent, folder, words, save = done.stdout.splitlines()
    assert int(parent) == os.getpid(), "exec: no shell stands between SLURM and the supervisor"
    assert folder == str(REPO) and words == "-m launch supervise train c.yaml a=b c"
    assert save == "60", "the environment wins over site.env"


def test_a_missing_python_is_named_with_the_remedy(tmp_path):
    env = {**os.environ, "SUPERVISOR_PYTHON": str(tmp_path / "none")}
    done = subprocess.run(["bash", REPO / "slurm" / "job.sh"], capture_output=True, text=True,
                          env=env)  # fmt: skip
    assert done.returncode == 2 and "set SUPERVISOR_PYTHON in slurm/site.env" in done.stderr
