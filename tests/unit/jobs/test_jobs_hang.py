"""A rank that hangs before it has met the others is watched as well."""

import os
import subprocess
import sys
from pathlib import Path

from pipeline.run.folder import RunFolder
from pipeline.run.hang import read_hang, stacks_file


def test_a_lease_on_storage_that_does_not_answer_is_a_hang_of_the_setup(
    repo: Path, low_digits: Path, tmp_path: Path, small: tuple[str, ...]
) -> None:
    """Reading from a pipe that nobody writes to waits for ever, as a dead NFS server does."""
    folder = RunFolder(tmp_path / "runs" / "stuck")
    folder.path.mkdir(parents=True)
    os.mkfifo(folder.lease)
    words = (f"data={low_digits}", f"runs={tmp_path}/runs", "name=stuck", *small)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "configs/demo.yaml", *words,
         "watch={setup_s: 2, beat_every_s: 0.2}"],
        cwd=repo, env={**os.environ, "PIPELINE_ATTEMPT": "3"}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    verdict = read_hang(folder, 3)
    assert verdict is not None and " in section setup at step 0: there for " in verdict["text"]
    assert "lease.py" in stacks_file(folder, 3, 0).read_text()
    assert verdict["text"] in done.stderr


def test_a_refusal_without_a_supervisor_leaves_no_folder(
    small_train, low_digits: Path, tmp_path: Path
) -> None:
    assert small_train(low_digits, "name=refused", "data.eval=none") == 2
    assert not (tmp_path / "runs").exists()
