"""Commands answer at once: help and plans load none of the heavy libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "torchvision", "deepspeed", "mlflow", "webdataset", "submitit", "sklearn"}
HELP_CPU_S = 0.5


def loaded(arguments: list[str], cwd: Path, env: dict[str, str]) -> set[str]:
    """Run Python and return the top packages that it imported on its way."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = (line.rsplit("|", 1) for line in done.stderr.splitlines() if "import time:" in line)
    return {row[1].strip().split(".")[0] for row in rows if len(row) == 2}


def cpu_s(arguments: list[str], cwd: Path, env: dict[str, str]) -> float:
    """Return the processor seconds that one run of Python takes; waiting does not count."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, env=env, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("package", ["pipeline", "launch", "data_prep"])
def test_help_loads_no_heavy_library(repo: Path, clean_env: dict[str, str], package: str) -> None:
    assert not loaded(["-m", package, "--help"], repo, clean_env) & HEAVY


@pytest.mark.parametrize("package", ["pipeline", "launch", "data_prep"])
def test_help_answers_in_half_a_second(repo: Path, clean_env: dict[str, str], package: str) -> None:
    best = min(cpu_s(["-m", package, "--help"], repo, clean_env) for _ in range(3))
    assert best < HELP_CPU_S


def test_settings_and_plans_load_no_heavy_library(repo: Path, clean_env: dict[str, str]) -> None:
    code = "import pipeline.recipe, pipeline.jobs.plan"
    assert not loaded(["-c", code], repo, clean_env) & HEAVY


def test_a_heavy_import_is_found(tmp_path: Path, clean_env: dict[str, str]) -> None:
    (tmp_path / "torch.py").write_text("", encoding="utf-8")
    (tmp_path / "heavy.py").write_text("import torch\n", encoding="utf-8")
    assert "torch" in loaded(["-m", "heavy"], tmp_path, clean_env)


def test_slow_help_is_found(tmp_path: Path, clean_env: dict[str, str]) -> None:
    busy = "import time\nwhile time.process_time() < 0.6: pass\n"
    (tmp_path / "busy.py").write_text(busy, encoding="utf-8")
    assert cpu_s(["-m", "busy"], tmp_path, clean_env) > HELP_CPU_S
