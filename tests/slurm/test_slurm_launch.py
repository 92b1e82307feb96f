"""The launch scripts as shipped, submitted to a cluster as large as they ask for."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.spec import load

pytestmark = pytest.mark.slurm


@pytest.fixture
def missing(tmp_path):
    """The override for a data set that is not there, with the counts that a card would give."""
    return f"data={{path: '{tmp_path}/no shards', num_train: 1000000, num_classes: 1000}}"


@pytest.fixture
def outcome(testbed, tmp_path):
    """Submit a launch script from a folder of its own and wait; returns (facts, log)."""

    def submit(script: Path, options: tuple[str, ...], *arguments: str) -> tuple[dict, str]:
        env = {**testbed.env, "SUPERVISOR_PYTHON": sys.executable}
        done = subprocess.run(
            ["sbatch", "--parsable", *options, script, f"runs={tmp_path}/runs", *arguments],
            capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        facts = testbed.wait(done.stdout.strip(), "COMPLETED", "FAILED", timeout_s=90)
        return facts, Path(facts["StdOut"]).read_text()

    return submit


def test_the_largest_script_as_shipped_reaches_all_ranks_and_names_the_missing_data(
    outcome, repo, tmp_path
):
    shards = Path(load(repo / "configs" / "data" / "imagenet21k_winter21.yaml")["path"])
    if (repo / shards).exists():
        pytest.skip(f"{shards} is here, and nobody wants to train on it now")
    facts, log = outcome(repo / "launch" / "v2_l_21k.sh", ())
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0"), log
    assert "32 of 32 ranks on 4 nodes answered" in log
    assert "GMACs" in log, "the plan is printed"
    assert "no such folder of shards" in log and str(shards) in log
    assert facts["StdOut"].startswith(str(tmp_path)), "the log lies where sbatch was called"


def test_options_on_the_command_line_win_over_the_scripts_own(outcome, repo, missing):
    options = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0")
    script = repo / "launch" / "v2_l_21k.sh"
    facts, log = outcome(script, options, missing, "model=tiny")
    assert facts["ExitCode"] == "2:0", log
    assert "2 of 2 ranks on 2 nodes answered" in log and "tiny" in log
    assert "no shards: no such folder of shards" in log


def test_a_wrong_setting_ends_the_job_with_2_and_its_name(outcome, repo):
    options = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=0")
    facts, log = outcome(repo / "launch" / "v2_s_1k.sh", options, "lr.peek=0.1")
    assert facts["ExitCode"] == "2:0"
    assert "'lr.peek' is unknown" in log or "peek' is unknown" in log


def test_preflight_on_the_login_node_finds_the_same_and_asks_the_scheduler(
    testbed, repo, tmp_path, missing
):
    env = {**testbed.env, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "launch", "preflight", "configs/v2_l_21k.yaml",
         missing, f"runs={tmp_path}/runs"],
        capture_output=True, text=True, timeout=60, env=env, cwd=repo,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"mistake  field 'data': {tmp_path}/no shards" in done.stdout
    assert "ok       ranks    32, all with work" in done.stdout
    assert "ok       sbatch   Job" in done.stdout, "sbatch --test-only was asked"
    assert "KillWait is 5 s" in done.stdout
    assert "http://127.0.0.1:9 does not answer" in done.stdout
    assert list(tmp_path.iterdir()) == [], "a preflight writes nothing"


def test_preflight_says_what_the_cluster_can_never_grant(testbed, repo, tmp_path):
    env = {**testbed.env, "SBATCH_CONSTRAINT": "h100"}
    done = subprocess.run(
        [sys.executable, "-m", "launch", "preflight", "configs/v2_l_21k.yaml",
         f"runs={tmp_path}/runs"],
        capture_output=True, text=True, timeout=60, env=env, cwd=repo,
    )  # fmt: skip
    assert done.returncode == 2
    assert "the cluster refuses it" in done.stdout
