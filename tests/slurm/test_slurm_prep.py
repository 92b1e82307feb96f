"""A build as arrays of jobs: the bytes of a local build, whatever node an element is lost with."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.requests import ROOT

pytestmark = pytest.mark.slurm

NUM_CLASSES, IMAGES_PER_CLASS = 12, 50
OPTIONS = ("--holdout", "0.1", "--shard-samples", "60", "--name", "fake")

# A node has 128 cores on paper; with 100 for each element no two of them share one. The build
# itself gets one process, and DELAY holds up the elements of one stage before they begin.
PYTHON = """#!/bin/bash
case "$*" in *--dry-run) exec {python} "$@" ;; esac
echo "$SLURMD_NODENAME $*" >> {folder}/started
{body}
exec {python} "${{@:1:$#-1}}" 1
"""


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of all files of a data set, but for what tells where it was built."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "build.json"
    }


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train tar like ILSVRC's: a tar of class tars, with one image that is cut off."""
    path = tmp_path_factory.mktemp("ilsvrc") / "ILSVRC2012_img_train.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as outer:
        for cls in range(NUM_CLASSES):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number in range(IMAGES_PER_CLASS):
                    image = io.BytesIO()
                    pixels = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(image, "JPEG")
                    cut = -200 if (cls, number) == (3, 7) else None
                    name = f"n{cls:08d}_{number}.JPEG"
                    add(tar, name, image.getvalue()[:cut])
            add(outer, f"n{cls:08d}.tar", inner.getvalue())
    return path


@pytest.fixture(scope="module")
def expected(source: Path) -> dict[str, str]:
    """The files of a local build."""
    out = source.parent / "local"
    command = [sys.executable, "-m", "data_prep", "build", str(source), str(out), *OPTIONS]
    subprocess.run(command, check=True, timeout=120, cwd=ROOT)
    return digests(out)


@pytest.fixture
def submit(testbed, tmp_path: Path, source: Path):
    """Start `launch submit prep` for tmp_path/OUT in three elements; `body` runs before each."""
    name = f"shards-{os.getpid()}-{tmp_path.name}"[:50]

    def start(body: str = "", *more: str) -> "subprocess.Popen[str]":
        python = tmp_path / "python"
        python.write_text(PYTHON.format(python=sys.executable, folder=tmp_path, body=body))
        python.chmod(0o755)
        command = ["submit", "prep", "--elements", "3", "--cpus", "100", "--time", "10", "--wait"]
        return subprocess.Popen(
            [sys.executable, "-m", "launch", *command, "--", str(source), str(tmp_path / name),
             *OPTIONS, *more],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env={**testbed.env, "RANK_PYTHON": str(python), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    yield start, tmp_path / name
    shutil.rmtree(ROOT / "runs" / "submitted" / f"prep-{name}", ignore_errors=True)


def starts(folder: Path, words: str) -> list[str]:
    """Return the nodes on which a stage or element was started, in order."""
    lines = (folder / "started").read_text().splitlines() if folder.exists() else []
    return [line.split()[0] for line in lines if f"--stage {words} " in line]


def job_of(process: "subprocess.Popen[str]", stage: str) -> tuple[str, str]:
    """Read what is said until a stage's job is submitted; returns its id and all that was said."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if f"--stage {stage} " in line:
            return line.split(":")[0], said
    raise AssertionError(f"stage {stage} was not submitted: {said}")


def test_three_elements_on_three_nodes_give_the_bytes_of_a_local_build(submit, expected, tmp_path):
    start, out = submit
    process = start()
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert digests(out) == expected
    for stage in ("check", "write"):
        nodes = [starts(tmp_path, f"{stage} --element {k}/3") for k in range(3)]
        assert [len(node) for node in nodes] == [1, 1, 1]
        assert len({node[0] for node in nodes}) >= 2, "elements ran beside each other"
    assert "check (" in said and "3 COMPLETED" in said


def test_an_element_that_is_requeued_goes_on_and_nothing_is_lost(
    testbed, submit, expected, tmp_path
):
    start, out = submit
    # Element 1 stops for good once it has begun; requeued, it goes through.
    process = start(
        f'if [[ "$*" == *"--element 1/3"* && ! -e {tmp_path}/again ]]; then\n'
        f'    {sys.executable} "${{@:1:$#-1}}" 1 & child=$!\n'
        f'    while [ -z "$(ls {out}/.build/check/*1.json {out}/train/*1.tar 2>/dev/null)" ]\n'
        "    do sleep 0.02; done\n"
        f"    kill -STOP $child; touch {tmp_path}/begun; sleep 600\n"
        "fi"
    )
    check, said = job_of(process, "check")
    testbed.until((tmp_path / "begun").exists, "element 1 at work", timeout_s=90)
    (tmp_path / "again").touch()
    testbed.ask("scontrol", "requeue", f"{check}_1")
    testbed.start_now(f"{check}_1")
    rest, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said + rest
    assert len(starts(tmp_path, "check --element 1/3")) == 2
    assert digests(out) == expected


def test_a_killed_element_is_named_stops_the_chain_and_the_same_command_goes_on(
    testbed, submit, expected, tmp_path
):
    start, out = submit
    process = start(
        f'if [[ "$*" == *"--stage write --element 2/3"* && ! -e {tmp_path}/again ]]; then\n'
        f"    touch {tmp_path}/begun; sleep 600\n"
        "fi"
    )
    write, said = job_of(process, "write")
    testbed.until((tmp_path / "begun").exists, "element 2 at work", timeout_s=120)
    testbed.ask("scancel", "--signal=KILL", "--batch", f"{write}_2")
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said + rest
    assert f"write[2] ({write}_2): FAILED exit 0:9; its log is " in rest
    assert "CANCELLED (a job before it failed)" in rest
    assert "the same command goes on from there" in rest
    assert not (out / "manifest.json").exists(), "half a data set is none"
    (tmp_path / "again").touch()
    again = start()
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert digests(out) == expected


def test_what_the_build_itself_refuses_is_refused_before_anything_is_queued(
    testbed, submit, tmp_path
):
    start, out = submit
    process = start("", "--per-class", "many")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "--per-class" in said, said
    assert "log" not in said and not out.exists()
