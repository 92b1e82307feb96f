"""What is recorded of code, libraries and machine."""

import subprocess
from pathlib import Path

import pytest

from pipeline.tracking import system
from pipeline.tracking.events import history
from pipeline.tracking.facts import commit, describe, machine, versions
from pipeline.tracking.spool import Spool
from pipeline.tracking.system import CpuUse, SystemSampler, disk, gpus, memory, parse_gpus


def test_commit_says_hash_and_whether_something_is_uncommitted(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    assert commit(tmp_path) == {"commit": "unknown"}
    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "x")
    facts = commit(tmp_path)
    assert len(facts["commit"]) == 40 and facts["uncommitted"] == "false"
    (tmp_path / "a.py").write_text("2")
    assert commit(tmp_path)["uncommitted"] == "true"


def test_a_missing_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) == {"commit": "unknown"}


def test_describe_is_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert describe() == before and before["torch"] == versions()["torch"]
    assert "host" not in before and machine()["slurm_job"] == "77"


def test_the_sampler_records_the_machine_at_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "gpus", lambda: {"gpu0_percent": 97.0})
    spool = Spool(tmp_path)
    spool.metrics(41, {"loss": 1.0})
    sampler = SystemSampler(spool, 0.05)
    sampler._closed.wait(0.4)
    sampler.close()
    points = history(tmp_path)
    assert points["system/gpu0_percent"][0][:2] == (41, 97.0)
    for name in ("cpu_percent", "memory_gb", "process_memory_gb", "disk_free_gb"):
        assert points[f"system/{name}"][0].value >= 0


def test_no_interval_means_no_samples(tmp_path: Path) -> None:
    SystemSampler(Spool(tmp_path), 0.0).close()
    assert history(tmp_path) == {}


def test_gpu_figures_are_read_and_unknown_ones_left_out() -> None:
    found = parse_gpus("0, 97, 81920, 512.3, 61\n1, 0, 3, [N/A], [Not Supported]\n")
    assert found["gpu0_percent"] == 97 and found["gpu0_memory_gb"] == pytest.approx(85.9, abs=0.01)
    assert found["gpu0_power_w"] == 512.3 and found["gpu0_temp_c"] == 61
    assert set(found) == {
        "gpu0_percent", "gpu0_memory_gb", "gpu0_power_w", "gpu0_temp_c",
        "gpu1_percent", "gpu1_memory_gb",
    }  # fmt: skip
    assert parse_gpus("") == {} and parse_gpus("NVIDIA-SMI has failed") == {}


def test_a_failing_nvidia_smi_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert gpus() == {}
    tool.write_text("#!/bin/sh\necho '0, 5, 100, 60, 40'\n")
    assert gpus()["gpu0_percent"] == 5


def test_figures_are_plausible(tmp_path: Path) -> None:
    use = CpuUse()
    sum(range(10**6))
    assert 0 <= use.sample().get("cpu_percent", 0.0) <= 100
    assert 0 < memory()["process_memory_gb"] < memory()["memory_gb"] * 4
    assert disk(tmp_path)["disk_free_gb"] > 0 and disk(tmp_path / "nowhere") == {}
