"""Two workers share the tests out as one process would run them, and measure the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from coverage import Coverage
from coverage.data import CoverageData

from tests.shares import RANKS, drop_halves, place, share_of

SAMPLE = ("tests/unit/plan/test_plan_lr.py", "tests/unit/run/test_run_clock.py")


def test_a_file_is_a_share_and_what_starts_ranks_is_one() -> None:
    assert share_of("tests/unit/run/test_run_lease.py::test_a[x@y::z]") == (
        "tests/unit/run/test_run_lease.py"
    )
    paths = ("slurm/test_slurm_hang.py", "slurm/test_slurm_nodes.py", "distributed/test_resume.py")
    assert {share_of(f"tests/{path}::test_a") for path in paths} == {RANKS}


def test_the_longest_shares_come_first() -> None:
    tests = [
        f"tests/{path}.py::test_a" for path in ("unit/a", "distributed/c", "unit/b", "slurm/d")
    ]
    assert sorted(tests, key=lambda test: place(test, {"tests/unit/b.py"})) == [
        tests[3], tests[1], tests[2], tests[0],
    ]  # fmt: skip


def test_workers_measure_what_they_run_once_and_leave_one_file(repo: Path, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--cov=pipeline.plan",
         "-n", "2", "--dist", "loadfile", f"--basetemp={tmp_path}/tmp", *SAMPLE],
        cwd=repo, env={**env, "COVERAGE_FILE": str(tmp_path / ".coverage")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    count, passed = (re.search(rf"(\d+) {word}", done.stdout) for word in ("items", "passed"))
    assert count and passed and count[1] == passed[1], done.stdout
    covered = re.search(r"plan/durations.py .* (\d+)%", done.stdout)
    assert covered and int(covered[1]) > 80, done.stdout
    assert [path.name for path in tmp_path.glob(".cov*")] == [".coverage"]


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9])
def test_what_a_killed_process_half_wrote_is_left_out_and_the_rest_counts(
    tmp_path: Path, part: float
) -> None:
    for name in ("whole", "half"):
        data = CoverageData(str(tmp_path / f".coverage.{name}"))
        data.add_lines({f"/{name}{number}.py": range(500) for number in range(50)})
        data.write()
        data.close()
    half = tmp_path / ".coverage.half"
    os.truncate(half, int(half.stat().st_size * part))
    assert drop_halves(tmp_path) == 1 and not half.exists()
    coverage = Coverage(data_file=str(tmp_path / ".coverage"), config_file=False)
    coverage.combine()
    assert len(coverage.get_data().measured_files()) == 50
