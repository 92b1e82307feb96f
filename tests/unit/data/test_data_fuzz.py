"""The fuzz targets run: every kind of file under sanitizers, all ways to its pixels compared."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def replay(
    repo: Path, build: Path, *files: Path, target: str = "crop"
) -> subprocess.CompletedProcess[str]:
    """Run files, or the seeds, through the target as the shell script does."""
    return subprocess.run(
        ["bash", str(repo / "tests/fuzz/run.sh"), target, "replay", *map(str, files)],
        env={**os.environ, "FUZZ_BUILD": str(build), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    source = folder / "try.c"
    source.write_text("#include <stdio.h>\n#include <jpeglib.h>\nint main(void) { return 0; }\n")
    options = ["-fsanitize=address,undefined", "-ljpeg", "-o", str(folder / "try")]
    if compiler is None or subprocess.run([compiler, source, *options]).returncode:
        pytest.skip("no C compiler with sanitizers, or no headers of libjpeg-turbo")
    return folder


def test_all_kinds_of_files_pass_the_sanitizers(repo: Path, build: Path) -> None:
    result = replay(repo, build)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "inputs, nothing found" in result.stdout
    assert int(result.stdout.split("\n")[-2].split()[0]) == len(
        list((build / "crop/seeds").iterdir())
    )


def test_cut_and_spoilt_files_pass_the_sanitizers(repo: Path, build: Path, tmp_path: Path) -> None:
    replay(repo, build, tmp_path / "missing")  # writes the seeds
    files = []
    for seed in sorted((build / "crop/seeds").iterdir())[::6]:
        data = seed.read_bytes()
        for number, position in enumerate(range(12, len(data), max(1, len(data) // 25))):
            spoilt = bytearray(data)
            spoilt[position] ^= 0xFF
            files.append(tmp_path / f"{seed.name}_{number}")
            files[-1].write_bytes(spoilt if number % 2 else data[:position] + b"\xff\xd9")
    result = replay(repo, build, *files)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"{len(files)} inputs" in result.stdout and len(files) > 200


def test_a_file_that_is_missing_is_named(repo: Path, build: Path, tmp_path: Path) -> None:
    result = replay(repo, build, tmp_path / "missing")
    assert result.returncode == 2
    assert "missing: No such file" in result.stderr


def test_operations_of_any_kind_pass_the_sanitizers(
    repo: Path, build: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    files = [tmp_path / str(number) for number in range(300)]
    for file in files:
        file.write_bytes(rng.bytes(int(rng.integers(1, 400))))
    result = replay(repo, build, *files, target="ops")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "300 inputs, nothing found" in result.stdout


def test_an_unknown_target_is_refused(repo: Path, build: Path) -> None:
    result = replay(repo, build, target="drop")
    assert result.returncode == 2
    assert "target drop: expected crop or ops" in result.stderr
