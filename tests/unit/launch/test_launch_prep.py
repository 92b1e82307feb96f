"""A build as five jobs: what each runs and waits for, and every mistake before one is queued."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import prep as module
from launch.__main__ import main
from launch.follow import follow, numbers_of
from launch.prep import SHARED, STAGES, Element, Prep, batches_of, prep_of, title_of
from launch.requests import ROOT
from launch.submit import parameters
from pipeline.spec import Misuse

ASKED = {"cpus_per_task": 4, "time": "30", "mem": None, "partition": None}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive; the working folder is the one it lies in."""
    (tmp_path / "train.tar").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "train.tar"


@pytest.fixture
def prep(source: Path) -> Prep:
    return prep_of(["train.tar", "out", "--holdout", "0.1"], 3, 2, ASKED)


@pytest.fixture
def python(programs, monkeypatch, tmp_path):
    """Make the Python of the jobs: `python(body)` returns the file of what it was called with."""

    def make(body: str = "exit 0") -> Path:
        monkeypatch.setenv("RANK_PYTHON", str(tmp_path / "bin" / "builder"))
        return programs("builder", body)

    return make


def test_five_jobs_wait_for_each_other_and_two_are_arrays(prep, source):
    batches = batches_of(prep)
    assert [batch.name for batch in batches] == ["list", "check", "arrange", "write", "finish"]
    assert [len(batch.runs) for batch in batches] == [1, 3, 1, 3, 1]
    assert [batch.after for batch in batches] == [
        (), ("list",), ("check",), ("arrange",), ("write",)
    ]  # fmt: skip
    out = str(source.parent / "out")
    build = (str(source), out, "--holdout", "0.1", "--stage")
    assert batches[2].runs == (Element("arrange", (*build, "arrange"), str(source.parent)),)
    assert [run.words[-4:] for run in batches[3].runs if isinstance(run, Element)] == [
        ("--stage", "write", "--element", f"{number}/3") for number in range(3)
    ]


def test_a_single_element_takes_all_the_work(source):
    batches = batches_of(prep_of(["train.tar", "out"], 1, 0, ASKED))
    assert [len(batch.runs) for batch in batches] == [1] * 5
    for batch in batches:
        (run,) = batch.runs
        assert isinstance(run, Element)
        assert ("0/1" in run.words) == (batch.name in SHARED)


def test_jobs_come_back_after_a_lost_node_and_are_cancelled_where_one_before_failed(prep):
    batch = batches_of(prep)[1]
    asked = parameters(batch.request, ["17"], batch.signal)
    assert asked["dependency"] == "afterok:17" and asked["use_srun"] is False
    assert (asked["nodes"], asked["ntasks_per_node"], asked["cpus_per_task"]) == (1, 1, 4)
    assert asked["additional_parameters"] == {
        "signal": "B:CONT@1", "requeue": True, "kill-on-invalid-dep": "yes"
    }  # fmt: skip
    assert batch.at_once == 2


@pytest.mark.parametrize(
    ("out", "title"),
    [
        ("shards", "prep-shards"),
        ("in1k; touch x", "prep-in1k--touch-x"),
        ("ü" * 200, "prep-" + "-" * 58),
    ],
)
def test_jobs_are_called_after_out_in_letters_that_slurm_takes(source, out, title):
    assert title_of(prep_of(["train.tar", out], 1, 0, ASKED)) == title


@pytest.mark.parametrize(
    ("words", "asked", "named"),
    [
        ([], {}, "the build is missing: write `-- SOURCE OUT`"),
        (["train.tar"], {}, "write `-- SOURCE OUT`"),
        (["--holdout", "0.1"], {}, "the build is --holdout 0.1: write `-- SOURCE OUT`"),
        (["none.tar", "out"], {}, "none.tar: no such folder or archive"),
        (["train.tar", "out", "--workers", "3"], {}, "--workers: every job gets its own"),
        (["train.tar", "out", "--stage=list"], {}, "--stage: every job gets its own"),
        (["train.tar", "out", "--element", "1/2"], {}, "use --elements and --cpus"),
        (["train.tar", "out", "--dry-run"], {}, "--dry-run: write it before the --"),
        (["train.tar", "out"], {"partition": "x; touch y"}, "command line"),
        (["train.tar", "out"], {"time": "soon"}, "command line"),
        (["train.tar", "out"], {"mem": "16 GB"}, "command line"),
    ],
)
def test_mistakes_are_named_before_anything_is_queued(source, words, asked, named):
    with pytest.raises(Misuse) as error:
        prep_of(words, 2, 0, {**ASKED, **asked})
    assert named in str(error.value)


def test_a_dry_run_lets_the_build_read_its_options_and_shows_the_jobs(source, python, capsys):
    calls = python()
    command = ["submit", "prep", "--elements", "3", "--array-limit", "2", "--cpus", "4", "--mem",
               "8G", "--dry-run", "--", "train.tar", "out", "--seed", "1"]  # fmt: skip
    assert main(command) == 0
    folder = source.parent
    asked = f"build {source} {folder}/out --seed 1"
    assert calls.read_text() == f"-P -m data_prep {asked} --dry-run\n"
    said = capsys.readouterr().out
    assert said.splitlines()[:4] == [
        f"prep-out-list: data_prep {asked} --stage list",
        "  waits for nothing; asks for nodes=1 ntasks_per_node=1 cpus_per_task=4 mem=8G",
        f"prep-out-check: data_prep {asked} --stage check --element K/3 for each K of 0 to 2, "
        "2 at once",
        "  waits for list; asks for nodes=1 ntasks_per_node=1 cpus_per_task=4 mem=8G",
    ]
    assert len(said.splitlines()) == 2 * len(STAGES) and not (folder / "out").exists()


def test_what_the_build_refuses_is_passed_on_and_nothing_is_queued(
    source, python, programs, capsys
):
    python("echo 'data_prep: --holdout: 7 is no rule' >&2; exit 2")
    sbatch = programs("sbatch", "exit 1")
    assert main(["submit", "prep", "--", "train.tar", "out", "--holdout", "7"]) == 2
    assert capsys.readouterr().err == "error: --holdout: 7 is no rule\n"
    assert not sbatch.exists()


def test_a_python_that_is_not_there_is_named_with_the_setting(source, monkeypatch, capsys):
    monkeypatch.setenv("RANK_PREFIX", "/no/apptainer exec image")
    assert main(["submit", "prep", "--dry-run", "--", "train.tar", "out"]) == 2
    assert "/no/apptainer: not found; correct RANK_PREFIX" in capsys.readouterr().err


def test_without_slurm_nothing_is_submitted(source, python, monkeypatch, capsys):
    python()
    monkeypatch.setattr("os.chdir", lambda path: None)
    monkeypatch.setenv("PATH", "/usr/bin/none:/bin/none")
    monkeypatch.setattr(module, "site_environment", dict)
    assert main(["submit", "prep", "--", "train.tar", "out"]) == 2
    assert "no sbatch and srun found" in capsys.readouterr().err


@pytest.fixture
def sbatch(programs, tmp_path):
    """A cluster that takes every job; a function returns (script, environment) of the n-th."""
    for name in ("srun", "scontrol"):
        programs(name, "exit 0")
    calls = tmp_path / "sbatch.calls"
    programs(
        "sbatch",
        f'n=$(wc -l < {calls}); cp "$1" {tmp_path}/script-$n; env > {tmp_path}/env-$n\n'
        "echo Submitted batch job 10$n",
    )

    def job(number: int) -> tuple[list[str], list[str]]:
        texts = [(tmp_path / f"{kind}-{number}").read_text() for kind in ("script", "env")]
        return texts[0].splitlines(), texts[1].splitlines()

    yield job
    shutil.rmtree(ROOT / "runs" / "submitted" / "prep-unit-out", ignore_errors=True)


def test_sbatch_is_asked_for_arrays_in_the_order_of_the_work(source, python, sbatch, capsys):
    python()
    words = ["--elements", "3", "--array-limit", "2", "--", "train.tar", "unit-out"]
    assert main(["submit", "prep", *words]) == 0
    scripts = [sbatch(number)[0] for number in range(1, 6)]
    said = capsys.readouterr().out
    for number, script in enumerate(scripts, 1):
        assert f"#SBATCH --job-name=prep-unit-out-{STAGES[number - 1]}" in script
        assert ("#SBATCH --array=0-2%2" in script) == (number in (2, 4))
        after = f"#SBATCH --dependency=afterok:10{number - 1}"
        assert (after in script) == (number > 1)
        assert "#SBATCH --time=1440" in script and "#SBATCH --requeue" in script
        assert f"10{number}: data_prep build" in said
    assert "runs/submitted/prep-unit-out/102_*_0_log.out" in said


def test_what_is_asked_for_wins_over_the_sites_settings(source, python, sbatch, monkeypatch):
    python()
    for name in ("PARTITION", "TIMELIMIT", "ACCOUNT"):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    words = ["--time", "2:00:00", "--partition", "big", "--", "train.tar", "unit-out"]
    assert main(["submit", "prep", *words]) == 0
    script, env = sbatch(5)
    assert "#SBATCH --partition=big" in script and "#SBATCH --time=120" in script
    left = sorted(line for line in env if line.startswith("SBATCH_"))
    assert left == ["SBATCH_ACCOUNT=1"], "sbatch takes its variables before the script's lines"


def test_planning_a_build_loads_neither_data_prep_nor_submitit(repo):
    code = "import launch.prep, sys; print(*(name.split('.')[0] for name in sys.modules))"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=repo, text=True)
    assert not {"data_prep", "submitit", "torch"} & set(said.split())


def test_a_config_called_prep_is_still_a_config(source, capsys):
    assert main(["submit", "./prep"]) == 2
    assert "prep: no such config file" in capsys.readouterr().err


class TestElement:
    @pytest.fixture
    def become(self, monkeypatch, tmp_path):
        """Call an element as in a job; returns (program, words, environment, folder)."""

        def call(**env: str):
            seen = []
            monkeypatch.setattr("os.execvpe", lambda *args: seen.append((*args, str(Path.cwd()))))
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            monkeypatch.chdir(ROOT)
            Element("check", ("a b", "out", "--stage", "check"), str(tmp_path))()
            return seen[0]

        return call

    def test_it_becomes_the_build_with_the_cores_of_its_job(self, become, tmp_path):
        program, words, env, folder = become(SLURM_CPUS_PER_TASK="6", PYTHONPATH="/mine")
        assert (program, folder) == (sys.executable, str(tmp_path))
        build = ["-P", "-m", "data_prep", "build", "a b", "out", "--stage", "check"]
        assert words == [sys.executable, *build, "--workers", "6"]
        assert env["PYTHONPATH"] == f"{ROOT}:/mine" and env["OMP_NUM_THREADS"] == "1"

    def test_it_runs_in_the_sites_container(self, become):
        program, words, _, _ = become(RANK_PREFIX="apptainer exec image", RANK_PYTHON="python3")
        assert program == "apptainer"
        assert words[:6] == ["apptainer", "exec", "image", "python3", "-P", "-m"]

    def test_a_container_of_srun_gets_all_cores(self, become):
        program, words, _, _ = become(SRUN_ARGS="--container-image=x", SLURM_CPUS_PER_TASK="6")
        srun = ["srun", "--ntasks=1", "--cpus-per-task=6", "--container-image=x", sys.executable]
        assert program == "srun" and words[:5] == srun


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3", [3]), ("0-2", [0, 1, 2]), ("1,4-5%2", [1, 4, 5]), ("0-6:3,9", [0, 3, 6, 9])],
)
def test_waiting_elements_share_one_record(text, numbers):
    assert list(numbers_of(text)) == numbers


class TestFollow:
    @pytest.fixture
    def answers(self, programs, tmp_path):
        """Let scontrol answer with each text twice, then the next."""

        def make(*texts: str) -> None:
            for index, text in enumerate(texts):
                (tmp_path / f"{index}").write_text(text)
            programs(
                "scontrol",
                f"n=$(wc -l < {tmp_path}/scontrol.calls); i=$(((n - 1) / 2))\n"
                f"[ $i -lt {len(texts)} ] || i={len(texts) - 1}\n"
                f"cat {tmp_path}/$i",
            )

        return make

    def lines(self, *states: str) -> str:
        return "".join(
            f"JobId={7 + n} ArrayJobId=7 ArrayTaskId={where} JobState={state} Reason={reason} "
            f"ExitCode={code} StdOut=/logs/7_{where}.out\n"
            for n, (where, state, reason, code) in enumerate(s.split() for s in states)
        )

    def test_an_array_is_followed_to_the_end_of_its_last_element(self, answers, capsys):
        answers(
            self.lines("0-2%2 PENDING Dependency 0:0"),
            self.lines("2 PENDING JobArrayTaskLimit 0:0", "0 RUNNING None 0:0",
                       "1 RUNNING None 0:0"),
            # SLURM has forgotten element 0, which ended long ago.
            self.lines("2 RUNNING None 0:0", "1 COMPLETED None 0:0", "0 COMPLETED None 0:0"),
            self.lines("2 COMPLETED None 0:0"),
        )  # fmt: skip
        assert follow({"check": "7"}, look_s=0.01) == 0
        said = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()]
        assert said == [
            "3 PENDING (Dependency)",
            "1 PENDING (JobArrayTaskLimit), 2 RUNNING",
            "2 COMPLETED, 1 RUNNING",
            "3 COMPLETED",
        ]

    def test_the_element_that_failed_is_named_with_its_log(self, answers, capsys):
        answers(
            self.lines("0 RUNNING None 0:0", "1 RUNNING None 0:0"),
            self.lines("0 COMPLETED None 0:0", "1 FAILED NonZeroExitCode 1:0"),
        )
        assert follow({"check": "7"}, look_s=0.01) == 1
        said = capsys.readouterr().out
        assert said.count("check[1] (7_1): FAILED exit 1:0; its log is /logs/7_1.out\n") == 1
        assert "check (7): 1 COMPLETED, 1 FAILED exit 1:0" in said

    def test_wrong_use_is_told_from_failure(self, answers):
        answers(self.lines("0 FAILED NonZeroExitCode 2:0", "1 COMPLETED None 0:0"))
        assert follow({"check": "7"}, look_s=0.01) == 2

    def test_a_requeued_element_is_not_over(self, answers, capsys):
        answers(
            self.lines("0 NODE_FAIL None 0:0"),
            self.lines("0 PENDING BeginTime 0:0"),
            self.lines("0 COMPLETED None 0:0"),
        )
        # Asked only once before it is back in the queue.
        (Path(os.environ["PATH"].split(":")[0]).parent / "scontrol.calls").write_text("early\n")
        assert follow({"check": "7"}, look_s=0.01) == 0
        assert "PENDING (BeginTime)" in capsys.readouterr().out

    def test_elements_cancelled_for_a_job_before_them_are_not_named_one_by_one(
        self, answers, capsys
    ):
        answers(self.lines("0-99 CANCELLED DependencyNeverSatisfied 0:0"))
        assert follow({"write": "7"}, look_s=0.01) == 1
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 1 and "write (7): 100 CANCELLED (a job before it failed)" in said[0]
