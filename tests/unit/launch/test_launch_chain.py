"""Chains: what waits for what, what each job asks for, and every mistake before anything runs."""

import json
from pathlib import Path

import pytest

from launch import submit as module
from launch.chain import read_chain
from launch.follow import follow
from launch.submit import Supervised, parameters, private_folder, submit
from pipeline.spec import Misuse


@pytest.fixture
def chain(tmp_path, config):
    """Write a chain file from a list of jobs (JSON is YAML) and read it."""

    def read(*jobs: dict, **top: object):
        path = tmp_path / "chain.yaml"
        path.write_text(json.dumps({"name": "c", "jobs": jobs, **top}))
        return read_chain([path])

    return read


def job(name: str, run: str = "transfer models:/m@candidate suite.yaml", **rest: object) -> dict:
    return {"name": name, "run": run, **rest}


def test_each_job_waits_for_the_one_above_unless_it_says_otherwise(chain):
    read = chain(job("a"), job("b"), job("c", after=[]), job("d", after=["a", "c"]),
                 job("e", after="b"))  # fmt: skip
    assert [read.waits_for(i) for i in range(5)] == [(), ("a",), (), ("a", "c"), ("b",)]


def test_configs_in_a_row_are_a_chain_of_trainings(config, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(config.read_text())
    read = read_chain([config, other])
    assert [j.run for j in read.jobs] == [("train", str(config)), ("train", str(other))]
    assert read.name == "counted" and read.waits_for(1) == ("counted",)


def test_a_training_asks_for_what_its_script_asks_for_and_may_say_otherwise(chain, monkeypatch):
    monkeypatch.setattr("launch.chain.load_recipe", lambda *args: None)
    read = chain(
        job("big", "train configs/v2_l_21k.yaml lr.peak=0.1"),
        job("small", "train configs/v2_l_21k.yaml", slurm={"nodes": 1}),
        slurm={"partition": "gpu", "time": "60"},
    )
    asked = read.request(0)
    assert (asked.nodes, asked.ntasks_per_node, asked.gpus_per_node) == (4, 8, 8)
    assert (asked.partition, asked.time) == ("gpu", "60"), "the chain wins over the script"
    assert (read.request(1).nodes, read.request(1).ntasks_per_node) == (1, 8)


def test_a_job_that_is_no_training_is_one_process_on_one_node(chain):
    read = chain(job("a"), job("b", slurm={"gpus_per_node": 0}),
                 slurm={"nodes": 4, "ntasks_per_node": 8, "gpus_per_node": 8})  # fmt: skip
    asked = read.request(0)
    assert (asked.nodes, asked.ntasks_per_node, asked.gpus_per_node) == (1, 1, 1)
    assert read.request(1).gpus_per_node == 0


@pytest.mark.parametrize(
    ("jobs", "named"),
    [
        ([], "jobs"),
        ([job("a"), job("a")], "two jobs are called 'a'"),
        ([job("a", after=["b"]), job("b")], "waits for 'b', which is not above it"),
        ([job(";touch x")], "jobs.0.name"),
        ([job("a", "rm -rf /")], "expected a pipeline job first"),
        ([job("a", "")], "jobs.0.run"),
        ([job("a", "train")], "'train' without a config"),
        ([job("a", "train nowhere.yaml")], "nowhere.yaml: no such config file"),
        ([job("a", slurm={"partition": "x; touch y"})], "jobs.0.slurm.partition"),
        ([job("a", slurm={"gpus": 8})], "'jobs.0.slurm.gpus' is unknown"),
        ([job("a", slurm={"nodes": 0})], "jobs.0.slurm.nodes"),
    ],
)
def test_mistakes_are_named(chain, jobs, named):
    with pytest.raises(Misuse) as error:
        chain(*jobs)
    assert named in str(error.value)


def test_a_wrong_setting_of_a_later_job_stops_the_chain_before_it_is_queued(chain, config):
    with pytest.raises(Misuse, match=r"lr\.peek"):
        chain(job("a"), job("b", f"train {config} lr.peek=1"))


def test_a_file_that_executes_is_only_text(tmp_path):
    path = tmp_path / "chain.yaml"
    path.write_text(f"jobs: !!python/object/apply:os.system ['touch {tmp_path}/x']\n")
    with pytest.raises(Misuse):
        read_chain([path])
    assert not (tmp_path / "x").exists()


def test_a_dry_run_shows_every_job_and_needs_no_slurm(chain, tmp_path, monkeypatch, capsys):
    chain(job("a"), job("b", slurm={"time": "30"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert submit([Path("chain.yaml")], dry_run=True, wait=False) == 0
    out = capsys.readouterr().out
    assert "c-a: transfer models:/m@candidate suite.yaml\n  waits for nothing" in out
    assert "waits for a; asks for nodes=1 ntasks_per_node=1 time=30" in out


def test_without_slurm_the_remedy_is_named(chain, tmp_path, monkeypatch):
    chain(job("a"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misuse, match="no sbatch and srun found.*launch local"):
        submit([tmp_path / "chain.yaml"], dry_run=False, wait=False)


def test_a_controller_that_is_down_is_told(chain, programs, tmp_path):
    chain(job("a"))
    for name in ("sbatch", "srun"):
        programs(name, "exit 1")
    programs("scontrol", "echo 'Slurmctld(primary) at c1 is DOWN'; exit 1")
    with pytest.raises(Misuse, match="SLURM does not answer: .*is DOWN"):
        submit([tmp_path / "chain.yaml"], dry_run=False, wait=False)


def test_the_batch_process_gets_the_signal_and_failures_cancel_what_waits(chain):
    asked = parameters(chain(job("a", slurm={"time": "2:00:00"})).request(0), ["11", "12"])
    assert asked["dependency"] == "afterok:11:12" and asked["time"] == 120
    assert asked["use_srun"] is False, "a nested srun hangs"
    assert asked["additional_parameters"] == {
        "signal": "B:USR2@180", "requeue": True, "kill-on-invalid-dep": "yes"
    }  # fmt: skip


def test_the_submitted_function_becomes_the_jobs_body(monkeypatch):
    called = []
    monkeypatch.setattr(module.os, "execv", lambda *args: called.append(args))
    Supervised(("train", "c.yaml", "name=;touch x"))()
    ((path, words),) = called
    assert path == "/bin/bash" and words[1].endswith("slurm/job.sh")
    assert words[2:] == ["train", "c.yaml", "name=;touch x"], "words, never a shell line"


def test_the_folder_of_pickles_is_its_owners_alone(tmp_path):
    (tmp_path / "f").mkdir(mode=0o777)
    assert private_folder(tmp_path / "f").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("states", "code", "last"),
    [
        (["JobState=COMPLETED ExitCode=0:0"], 0, "a (7): COMPLETED"),
        (["JobState=FAILED ExitCode=1:0"], 1, "FAILED exit 1:0"),
        (["JobState=FAILED ExitCode=2:0"], 2, "FAILED exit 2:0"),
        (["JobState=TIMEOUT ExitCode=0:15"], 1, "TIMEOUT exit 0:15"),
        (["JobState=CANCELLED Reason=DependencyNeverSatisfied ExitCode=0:0"], 1, "a job before"),
        (["JobState=PENDING Reason=BeginTime", "JobState=RUNNING Reason=None",
          "JobState=COMPLETED ExitCode=0:0"], 0, "a (7): COMPLETED"),
    ],
)  # fmt: skip
def test_jobs_are_followed_to_their_end(programs, tmp_path, capsys, states, code, last):
    for index, line in enumerate(states):
        (tmp_path / f"{index}").write_text(f"JobId=7 {line}\n")
    programs(
        "scontrol",
        f"n=$(wc -l < {tmp_path}/scontrol.calls); i=$(((n - 1) / 2))\n"
        f"[ $i -lt {len(states)} ] || i={len(states) - 1}\ncat {tmp_path}/$i",
    )
    assert follow({"a": "7"}, look_s=0.01) == code
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(states) and last in out[-1]
