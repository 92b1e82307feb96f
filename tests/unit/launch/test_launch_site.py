"""slurm/site.env in slurm/job.sh: modules, the Python, containers; and what submitit gets."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.limits import LIMITS_S
from launch.ranks import rank_command, rank_environment
from launch.requests import Request, site_environment
from launch.steps import Allocation, SrunLauncher
from launch.submit import parameters
from pipeline.spec import Misuse

APPTAINER = "apptainer exec --nv --bind /data,/scratch /images/effnet.sif"
PYXIS = "--container-image=/images/effnet.sqsh --container-mounts=/data,/scratch"


@pytest.fixture
def job(repo: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run slurm/job.sh of a copy of slurm/ with settings; its Python only says what it is given."""
    shutil.copytree(repo / "slurm", tmp_path / "slurm")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"; echo "loaded: $LOADED"; echo "scratch: $TMPDIR"\n')
    python.chmod(0o755)

    def run(**settings: str) -> subprocess.CompletedProcess[str]:
        lines = [f': "${{{name}:={value}}}"\n' for name, value in settings.items()]
        (tmp_path / "slurm" / "site.env").write_text("".join(lines))
        env = {"PATH": os.environ["PATH"], "SUPERVISOR_PYTHON": str(python)}
        return subprocess.run(
            ["bash", tmp_path / "slurm" / "job.sh", "train", "c.yaml", "a=b c"],
            capture_output=True, text=True, env=env, timeout=20, cwd="/",
        )  # fmt: skip

    return run


def test_the_job_becomes_the_supervisor_with_the_sites_settings(job):
    done = job(TMPDIR="/local/scratch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "-m launch supervise train c.yaml a=b c", "loaded: ", "scratch: /local/scratch"
    ]  # fmt: skip


@pytest.fixture
def modules(tmp_path: Path) -> str:
    """A folder as MODULESHOME has it, with modules `gcc/13` and `cuda/12`."""
    init = tmp_path / "modules" / "init" / "bash"
    init.parent.mkdir(parents=True)
    init.write_text(
        "module() { case $2 in gcc/13|cuda/12) export LOADED=$LOADED,$2;; *) return 1;; esac; }\n"
    )
    return str(tmp_path / "modules")


def test_modules_are_loaded_in_their_order_before_python_starts(job, modules):
    done = job(MODULESHOME=modules, MODULES="gcc/13 cuda/12")
    assert done.returncode == 0, done.stderr
    assert "loaded: ,gcc/13,cuda/12" in done.stdout


def test_a_module_that_is_not_there_ends_the_job_with_its_name(job, modules):
    done = job(MODULESHOME=modules, MODULES="gcc/13 cuda/99")
    assert done.returncode == 2 and "module 'cuda/99' of MODULES in slurm/site.env" in done.stderr


def test_modules_without_a_module_command_say_what_to_clear(job, tmp_path):
    done = job(MODULESHOME=str(tmp_path / "none"), MODULES="none/13")
    assert done.returncode == 2 and "MODULES" in done.stderr and "slurm/site.env" in done.stderr


@pytest.mark.parametrize(
    ("settings", "srun_end", "command"),
    [
        ({}, "--label", "/venv/bin/python -m pipeline train c.yaml"),
        ({"RANK_PREFIX": APPTAINER, "RANK_PYTHON": "python3"}, "--label",
         f"{APPTAINER} python3 -m pipeline train c.yaml"),
        ({"SRUN_ARGS": PYXIS, "RANK_PYTHON": "python3"}, PYXIS,
         "python3 -m pipeline train c.yaml"),
    ],
)  # fmt: skip
def test_ranks_start_in_the_sites_container(programs, settings, srun_end, command):
    programs("scontrol", 'if [ "$2" = hostnames ]; then echo gpu1 gpu2; fi')
    calls = programs("srun", "exit 0")
    launcher = SrunLauncher(Allocation("12", 0, "gpu[1-2]", 2, 8, 12), settings)
    words = rank_command(["train", "c.yaml"], "/venv/bin/python", settings)
    step = launcher.start(words, 16, 0)
    while step.poll() is None:
        pass
    said = calls.read_text().strip()
    assert said.endswith(f"{srun_end} {command}")
    assert "--cpus-per-task=12" in said


def test_the_sites_interface_reaches_gloo_and_nccl_unless_they_are_set(monkeypatch):
    monkeypatch.setenv("NETWORK_INTERFACE", "ib0")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    env = rank_environment("10.0.0.1", 20001, 0, 4)
    assert (env["GLOO_SOCKET_IFNAME"], env["NCCL_SOCKET_IFNAME"]) == ("ib0", "ib1")


def test_every_setting_of_the_file_may_be_switched_on(repo, monkeypatch, tmp_path):
    lines = (repo / "slurm" / "site.env").read_text().splitlines()
    settings = [line.removeprefix("# ") for line in lines if line.startswith('# : "${')]
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "site.env").write_text("\n".join(settings))
    monkeypatch.setattr("launch.requests.ROOT", tmp_path)
    found = site_environment({"PATH": os.environ["PATH"], "SBATCH_QOS": "mine"})
    expected = {"SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_CONSTRAINT", "MODULES",
                "SUPERVISOR_PYTHON", "RANK_PREFIX", "SRUN_ARGS", "RANK_PYTHON", "TMPDIR",
                "NETWORK_INTERFACE", *LIMITS_S, "LEAST_WORLD", "MLFLOW_TRACKING_URI"}  # fmt: skip
    assert expected <= set(found) and found["SBATCH_QOS"] == "mine"
    assert found["RANK_PREFIX"] == APPTAINER and found["SRUN_ARGS"] == PYXIS
    page = (repo / "docs" / "cluster.md").read_text()
    assert all(f"`{name}`" in page for name in expected), "and the page tells of each"


def test_a_range_of_nodes_reaches_sbatch_and_not_submitits_reckoning():
    asked = parameters(Request(nodes="2-8", ntasks_per_node=4), ())
    assert "nodes" not in asked and asked["ntasks_per_node"] == 4
    extra = asked["additional_parameters"]
    assert isinstance(extra, dict) and extra["nodes"] == "2-8"
    assert parameters(Request(nodes=3), ())["nodes"] == 3


@pytest.mark.parametrize("nodes", ["2-", "8;rm", "0-3", "a-b", 0])
def test_a_number_of_nodes_that_is_none_is_refused(nodes):
    with pytest.raises(Misuse, match="nodes"):
        Request.parse({"nodes": nodes}, "chain.yaml")
