"""The commands as processes of their own: exit code, one clear line, no traceback, nothing made."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Case:
    """A command, what its environment adds, its exit code and words of its message."""

    command: str
    words: tuple[str, ...]
    code: int = 2
    env: dict[str, str] = field(default_factory=dict)


TRAIN = "pipeline train configs/demo.yaml runs={tmp}/runs data={data} tracking.enabled=false"
RANKS = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}
CASES = {
    "unknown key": Case(
        f"{TRAIN} lr.peek=1", ("configs/demo.yaml: field 'lr.peek' is unknown; remove it",)
    ),
    "wrong type": Case(
        f"{TRAIN} length.epochs=many", ("configs/demo.yaml: field 'length.epochs' is 'many'",)
    ),
    "no override": Case(f"{TRAIN} lr.peak", ("override 'lr.peak': expected key=value",)),
    "unknown model": Case(f"{TRAIN} model=v2_q", ("'model", "v2_q", "v2_s")),
    "world": Case(TRAIN, ("is 4, which 3 ranks cannot share", "use 1, 2, 4 ranks"), env=RANKS),
    "half a world": Case(
        TRAIN, ("environment: RANK, LOCAL_RANK not set", "srun"), env={"WORLD_SIZE": "2"}
    ),
    "wrong world": Case(
        TRAIN, ("RANK='one'", "whole numbers"), env={**RANKS, "RANK": "one"}
    ),
    "wrong tracker": Case(
        f"{TRAIN} tracking.uri=./mlruns", ("'tracking.uri' is './mlruns'", "sqlite:///FILE")
    ),
    "wrong tracker in the environment": Case(
        f"{TRAIN} tracking.enabled=true", ("MLFLOW_TRACKING_URI", "file:/x", "http://HOST:PORT"),
        env={"MLFLOW_TRACKING_URI": "file:/x"},
    ),
    "missing shards": Case(
        f"{TRAIN} data={{tmp}}/none", ("{tmp}/none: no such folder of shards", "data_prep build")
    ),
    "missing shards for the plan": Case(
        "pipeline plan configs/demo.yaml data={tmp}/none", ("{tmp}/none", "data.num_train")
    ),
    "missing shards in preflight": Case(
        "launch preflight configs/demo.yaml data={tmp}/none --ranks 2", ()
    ),
    "missing shards under the launcher": Case(
        "launch local --ranks 2 train configs/demo.yaml runs={tmp}/runs data={tmp}/none",
        ("{tmp}/none", "data_prep build"),
    ),
    "no SLURM": Case(
        "launch submit configs/demo_chain.yaml", ("no sbatch", "python -m launch local"),
        env={"PATH": "/nonexistent"},
    ),
    "no such run": Case("pipeline register {tmp}", ("{tmp}: not a run folder",)),
    "no such config": Case("pipeline plan configs/none.yaml", ("configs/none.yaml", "demo")),
    "no such suite": Case("pipeline transfer models:/m/1 {tmp}/none.yaml", ("{tmp}/none.yaml",)),
    "no such source": Case("data_prep build {tmp}/none {tmp}/out", ("{tmp}/none",)),
    "no such shards": Case("data_prep verify {tmp}/none", ("{tmp}/none",)),
}  # fmt: skip


def run(case: Case, tmp: Path, data: Path, repo: Path) -> subprocess.CompletedProcess[str]:
    module, *words = case.command.split(" ")
    arguments = [word.format(tmp=tmp, data=data) for word in words]
    drop = ("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MLFLOW_", "PIPELINE_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=repo,
        env={**env, "OMP_NUM_THREADS": "1", **case.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_misuse_is_one_message_and_nothing_is_made(
    case: Case, tmp_path: Path, low_digits: Path, repo: Path
) -> None:
    done = run(case, tmp_path, low_digits, repo)
    said = done.stdout + done.stderr
    assert done.returncode == case.code, said
    assert "Traceback" not in said
    for words in case.words:
        assert words.replace("{tmp}", str(tmp_path)) in done.stderr
    assert not list(tmp_path.rglob("recipe.yaml"))
    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.rglob("checkpoints"))
