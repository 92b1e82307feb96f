"""The testbed itself: several side by side, idempotent, gone without a trace."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm


@pytest.fixture
def base(needs_slurm):
    """A folder with a short path: a socket lies in it."""
    folder = Path(tempfile.mkdtemp(prefix="beds-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def bed(repo):
    """Run slurm/testbed with a subcommand on a folder."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}

    def call(command: str, folder: Path, *options: str, **extra: str) -> tuple[int, str]:
        done = subprocess.run(
            [repo / "slurm" / "testbed", command, "--dir", folder, *options],
            capture_output=True, text=True, timeout=90, env={**env, **extra},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return call


def test_two_testbeds_live_side_by_side_and_leave_nothing(bed, base):
    folders = (base / "a", base / "b")
    sleepers = []
    try:
        for folder in folders:
            code, said = bed("up", folder, "--nodes", "2", "--gpus", "1", "--cpus", "4")
            assert code == 0, said
        for folder in folders:
            env = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
            command = ["timeout", "60", "srun", "--nodes=2", "--gpus-per-node=1", "printenv"]
            said = subprocess.run(command, capture_output=True, text=True, env=env).stdout
            names = {line for line in said.splitlines() if line.startswith("SLURMD_NODENAME=")}
            assert names == {"SLURMD_NODENAME=node1", "SLURMD_NODENAME=node2"}
            assert f"SLURM_CONF={folder}/slurm.conf" in said
            sleepers.append(subprocess.Popen(["timeout", "60", "srun", "sleep", "55"], env=env))
        assert bed("status", folders[0])[0] == 0
    finally:
        for folder in folders:
            code, said = bed("down", folder)
            assert code == 0, said
    for sleeper in sleepers:
        assert sleeper.wait(timeout=30) != 0, "the step of a running job ends with its cluster"
    assert not any(folder.exists() for folder in folders)
    assert _processes_of(base) == []


def test_up_again_is_harmless_and_another_shape_is_refused(bed, base):
    try:
        first = bed("up", base / "bed", "--nodes", "1", "--gpus", "0")
        again = bed("up", base / "bed", "--nodes", "1", "--gpus", "0")
        assert (first[0], again[0]) == (0, 0)
        assert first[1] == again[1], "the same cluster, not a new one"
        code, said = bed("up", base / "bed", "--nodes", "2", "--gpus", "0")
        assert code == 2 and "is up with --nodes 1" in said
    finally:
        bed("down", base / "bed")


def test_the_callers_cluster_is_left_alone(bed, base):
    theirs = base / "theirs.conf"
    theirs.write_text("ClusterName=theirs\n")
    try:
        code, said = bed("up", base / "bed", "--nodes", "1", SLURM_CONF=str(theirs))
        assert code == 0, said
        code, said = bed("env", base / "bed", SLURM_CONF=str(theirs))
        assert said == f"export SLURM_CONF='{base}/bed/slurm.conf'\n"
    finally:
        bed("down", base / "bed", SLURM_CONF=str(theirs))
    assert theirs.read_text() == "ClusterName=theirs\n"


def test_a_folder_with_other_things_is_never_taken_or_removed(bed, base):
    (base / "thesis.tex").write_text("years of work")
    code, said = bed("up", base)
    assert code == 2 and "choose another --dir" in said
    assert bed("down", base)[0] == 0 and (base / "thesis.tex").exists()


def test_status_and_env_of_nothing(bed, base):
    assert bed("status", base / "none")[0] == 1
    code, said = bed("env", base / "none")
    assert code == 2 and "run `slurm/testbed up` first" in said


def _processes_of(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SLURM_CONF={folder}".encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
