"""A process in a group of its own that is killed, sleeps, waits for the device, or is stopped."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_survival import DEADLINE_S, LATE_S, end, start
from pipeline.run.folder import FAILED, RunFolder
from pipeline.run.hang import hang_text

pytestmark = [pytest.mark.distributed]


def test_the_watchdog_ends_a_process_that_is_alone_in_its_group(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    process = start(folder, "asleep", gb=0.01)
    took_s = end(process, "asleep")
    assert process.returncode == FAILED
    assert took_s < DEADLINE_S + LATE_S
    assert hang_text(folder, 0).startswith("hang: rank 0 on ")
    assert "in section step at step 51" in hang_text(folder, 0)


@pytest.mark.parametrize("way", ["killed", "stopped"])
def test_a_kill_ends_it_also_where_it_stands_still(tmp_path: Path, way: str) -> None:
    process = start(RunFolder(tmp_path / "run"), way, gb=0.01)
    end(process, way)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_measurement_refuses(repo: Path) -> None:
    command = [sys.executable, "benchmarks/gpu_survival.py"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_is_free_again_after_a_kill_and_after_a_hang(repo: Path) -> None:
    command = [sys.executable, "benchmarks/gpu_survival.py"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
