"""The testbed where it cannot run, and the files it writes."""

import importlib
import os
import subprocess

import pytest


@pytest.fixture
def testbed(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "slurm"))
    return importlib.import_module("testbed")


@pytest.fixture
def files(testbed):
    return importlib.import_module("testbed_files")


def test_without_root_it_says_so_and_ends_with_2(testbed, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(testbed.os, "geteuid", lambda: 1000)
    assert testbed.main(["up", "--dir", str(tmp_path / "bed")]) == 2
    assert "must run as root" in capsys.readouterr().err
    assert not (tmp_path / "bed").exists()


def test_missing_programs_name_their_debian_packages(testbed, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(testbed.os, "geteuid", lambda: 0)
    there = {"srun", "sbatch", "scontrol", "munge"}
    monkeypatch.setattr(testbed, "which", lambda name: "/bin/x" if name in there else None)
    assert testbed.main(["up", "--dir", str(tmp_path / "bed")]) == 2
    said = capsys.readouterr().err
    assert "slurmctld, slurmd, munged not found" in said
    assert "apt-get install munge slurmctld slurmd" in said


@pytest.mark.parametrize("option", [("--nodes", "0"), ("--gpus", "99"), ("--cpus", "0")])
def test_a_shape_that_makes_no_sense_is_refused(testbed, tmp_path, option, capsys):
    assert testbed.main(["up", "--dir", str(tmp_path / "bed"), *option]) == 2
    assert f"{option[0]} {option[1]}" in capsys.readouterr().err


def test_a_path_too_long_for_a_socket_is_refused(testbed, files, tmp_path):
    with pytest.raises(files.Problem, match="too long for a socket"):
        files.create(tmp_path / ("x" * 90), 1, 0, 4)


@pytest.mark.parametrize(("gpus", "line"), [(8, "File={}/gpu[0-7]"), (1, "File={}/gpu0"), (0, "")])
def test_pretended_gpus_are_plain_files(files, gpus, line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("b")
    bed = files.create(folder, 2, gpus, 64)
    files.write_conf(bed)
    gres = folder / "gres.conf"
    assert gres.exists() == bool(gpus)
    assert not gpus or line.format(folder) in gres.read_text()
    text = bed.conf.read_text()
    assert text.count("NodeName=") == 2 and ("Gres=gpu" in text) == bool(gpus)
    assert len(set(bed.ports)) == 3, "controller and nodes each have a port"


def test_what_was_started_is_read_back(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("b")
    bed = files.create(folder, 1, 0, 4)
    bed.started["slurmctld"] = [12, 345]
    bed.save()
    assert files.load(folder) == bed
    assert files.load(folder / "none") is None


def test_only_the_process_that_was_started_is_ever_stopped(testbed):
    processes = importlib.import_module("testbed_processes")
    child = subprocess.Popen(["sleep", "60"])
    start = processes._start_time(child.pid)
    try:
        processes.stop([[child.pid, start + 1]], patience_s=0.1)
        assert child.poll() is None, "another process has this id now"
        processes.stop([[child.pid, start]])
        assert child.wait(timeout=5) == -15
    finally:
        child.kill()
    assert not processes.is_alive(os.getpid(), 0)
