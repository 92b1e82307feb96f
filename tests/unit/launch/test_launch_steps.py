"""srun: what it is called with, and what its words mean; cluster answers that do not come."""

import subprocess
import sys
import time
from contextlib import suppress

import pytest

from launch import cluster, steps
from launch.cluster import NoAnswer
from launch.steps import Allocation, SrunLauncher, allocation_from, clear_steps
from pipeline.spec import Misuse

ENV = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "gpu[1-4]",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_CPUS_PER_TASK": "12",
    "SLURM_RESTART_COUNT": "2",
}


def test_the_allocation_is_read_from_the_jobs_environment():
    assert allocation_from(ENV) == Allocation("12", 2, "gpu[1-4]", 4, 8, 12)
    assert allocation_from(ENV).num_tasks == 32


def test_a_job_that_asked_for_no_tasks_has_one_a_node():
    small = {key: ENV[key] for key in list(ENV)[:3]}
    assert allocation_from(small) == Allocation("12", 0, "gpu[1-4]", 4, 1, 1)


def test_outside_of_a_job_the_remedy_is_named():
    with pytest.raises(Misuse, match=r"SLURM_JOB_ID is not set.*launch local"):
        allocation_from({})


@pytest.fixture
def launcher(programs):
    programs("scontrol", 'if [ "$2" = hostnames ]; then echo gpu1 gpu2 gpu3 gpu4; else '
             'echo "NodeName=gpu1 NodeAddr=10.1.0.1 NodeHostName=gpu1"; fi')  # fmt: skip
    return SrunLauncher(allocation_from(ENV), {"SRUN_ARGS": "--container-image=/i.sqsh"})


def test_ranks_meet_at_the_first_nodes_address(launcher):
    assert launcher.address == "10.1.0.1", "names need not resolve"


@pytest.mark.parametrize(
    ("world", "nodes", "per_node"), [(32, 4, 8), (24, 3, 8), (16, 2, 8), (4, 1, 4), (1, 1, 1)]
)
def test_srun_starts_one_task_a_rank_on_as_few_nodes_as_hold_them(launcher, world, nodes, per_node):
    command = launcher.srun(world)
    assert {"--kill-on-bad-exit=1", "--wait=60", "--cpus-per-task=12"} <= set(command)
    assert {f"--nodes={nodes}", f"--ntasks={world}"} <= set(command)
    assert f"--ntasks-per-node={per_node}" in command
    assert command[-1] == "--container-image=/i.sqsh", "the site's arguments come last"


def test_the_step_tells_what_srun_said_and_its_code_is_not_trusted(launcher, programs, monkeypatch):
    monkeypatch.setattr(steps, "clear_steps", lambda job: None)
    programs("srun", "echo 'srun: error: gpu2: task 9: Killed' >&2; echo other >&2; exit 137")
    step = launcher.start(["true"], 32, 0)
    while (end := step.poll()) is None:
        pass
    assert (end.code, end.died) == (137, True)
    assert end.note == "srun ended with 137: gpu2: task 9: Killed"


@pytest.mark.parametrize(
    ("lines", "died", "killed"),
    [
        ([], False, False),
        (["gpu1: task 0: Exited with exit code 75", "gpu2: task 1: Terminated"], False, False),
        (["gpu1: tasks 0-3,7: Exited with exit code 2"], False, False),
        (["gpu1: task 0: Exited with exit code 1"], True, False),
        (["gpu1: task 0: Exited with exit code 255"], True, False),
        (["gpu2: task 1: Killed", "gpu1: task 0: Exited with exit code 75"], True, True),
        (["gpu2: task 1: Segmentation fault (core dumped)"], True, True),
        (["Unable to create step for job 3: Invalid node"], False, False),
    ],
)
def test_who_left_first_tells_a_crash_from_an_orderly_end(
    launcher, programs, monkeypatch, lines, died, killed
):
    monkeypatch.setattr(steps, "clear_steps", lambda job: None)
    said = "; ".join(f"echo 'srun: error: {line}' >&2" for line in lines) or "true"
    programs("srun", f"{said}; exit 1")
    step = launcher.start(["true"], 32, 0)
    while (end := step.poll()) is None:
        pass
    assert (end.died, end.killed) == (died, killed)


def test_leftover_steps_are_cancelled_and_waited_for(programs, tmp_path):
    programs("squeue", f"[ -e {tmp_path}/ended ] || printf '12.batch\\n12.extern\\n12.3\\n'")
    cancelled = programs("scancel", f"touch {tmp_path}/ended")
    clear_steps("12")
    assert cancelled.read_text() == "12.3\n", "never the batch step: that is the supervisor"


def test_a_step_that_does_not_end_is_an_error(programs, monkeypatch):
    monkeypatch.setattr(steps, "CLEAR_S", 0.2)
    programs("squeue", "echo 12.3")
    programs("scancel", "true")
    with pytest.raises(NoAnswer, match=r"step 12\.3 did not end"):
        clear_steps("12")


def test_ranks_that_no_signal_ends_do_not_keep_a_job_from_its_requeue(launcher, programs):
    """As processes that wait for dead storage: their step stays in squeue."""
    programs("srun", "exec sleep 60")
    programs("squeue", "echo 12.3")
    killed = programs("scancel", "true")
    step = launcher.start(["true"], 32, 0)
    begun = time.monotonic()
    step.kill()
    while step.poll() is None:
        time.sleep(0.02)
    assert time.monotonic() - begun < 10
    assert killed.read_text() == "--signal=KILL 12.3\n"


@pytest.mark.parametrize(
    ("first", "calls"),
    [("Killed", ["--signal=KILL 12.3"]), ("Exited with exit code 75", [])],
)
def test_what_outlives_a_dead_rank_is_killed_before_killwait_is_over(
    launcher, programs, monkeypatch, tmp_path, first, calls
):
    monkeypatch.setattr(steps, "GRACE_CRASH_S", 0.5)
    monkeypatch.setattr(steps, "clear_steps", lambda job: None)
    programs("srun", f"echo 'srun: error: gpu2: task 9: {first}' >&2; exec sleep 3")
    programs("squeue", "printf '12.batch\\n12.3\\n'")
    killed = programs("scancel", "true")
    step = launcher.start(["true"], 32, 0)
    while step.poll() is None:
        time.sleep(0.02)
    assert (killed.read_text().splitlines() if killed.exists() else []) == calls, "and only once"


def test_a_full_log_blocks_no_rank(launcher, programs, monkeypatch):
    """What srun says is more than a pipe holds, and the disk takes none of it."""
    monkeypatch.setattr(steps, "clear_steps", lambda job: None)
    last = "srun: error: gpu2: task 9: Killed"
    programs("srun", f"(head -c 300000 /dev/zero; echo; echo '{last}') >&2; exit 9")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        step = launcher.start(["true"], 32, 0)
        deadline = time.monotonic() + 20
        while (end := step.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert end.killed


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("Task launch for StepId=1.1 failed on node n2: Communication connection failure", True),
        ("Application launch failed: Communication connection failure", True),
        ("Node failure on node2", True),
        ("Unable to create step for job 1: Job/step already completing or completed", True),
        ("Unable to contact slurm controller (connect failure)", True),
        ("node2: task 1: Killed", False),
        ("gpu1: task 0: Exited with exit code 1", False),
        ("Unable to create step for job 3: Invalid node name specified", False),
        ("invalid option --container-imag", False),
    ],
)
def test_a_lost_node_is_told_from_a_crash(words, lost):
    assert cluster.tells_of_lost_node(f"srun ended with 1: {words}") is lost


@pytest.mark.parametrize("state", ["CANCELLED", "PENDING", "COMPLETING", "TIMEOUT"])
def test_only_a_running_job_is_requeued(programs, state):
    calls = programs("scontrol", f"echo 'JobId=12 JobState={state} Reason=None'")
    said: list[str] = []
    cluster.requeue("12", said.append)
    assert state in said[0]
    assert "requeue" not in calls.read_text()


def test_a_running_job_is_requeued_and_it_is_told_before(programs):
    calls = programs("scontrol", "echo 'JobId=12 JobState=RUNNING'")
    before: list[str] = []

    def tell(words: str) -> None:
        before.extend([words, calls.read_text()])

    cluster.requeue("12", tell)
    assert "goes back into the queue" in before[0]
    assert "requeue 12" not in before[1], "SLURM may end the supervisor as soon as it is asked"
    assert calls.read_text().splitlines()[-1] == "requeue 12"


def test_answers_that_do_not_come_name_the_command(programs):
    programs("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    with pytest.raises(NoAnswer, match="scontrol --oneliner show job 99: .*Invalid job id"):
        cluster.job_facts("99")
    programs("sinfo", "exec sleep 5")
    with pytest.raises(NoAnswer, match="no answer in 0 s"):
        cluster.ask(["sinfo"], timeout_s=0.2)
    with pytest.raises(NoAnswer, match="not found; is this a SLURM machine"):
        cluster.ask(["squeue-of-nowhere"])


@pytest.mark.parametrize(
    ("first", "code"), [("Exited with exit code 2", 2), ("Exited with exit code 1", 143)]
)
def test_a_task_that_refuses_first_gives_the_step_its_code(monkeypatch, first, code):
    """srun itself ends with the code of those that it killed afterwards."""
    monkeypatch.setattr(steps, "clear_steps", lambda job: None)
    said = (
        f"srun: error: node2: task 1: {first}\\n"
        "srun: Terminating StepId=7.0\\n"
        "srun: error: node1: task 0: Terminated\\n"
    )
    program = f"import sys; sys.stderr.write('{said}'); sys.exit(143)"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    step = steps.SrunStep(process, "7")
    process.wait(20)
    end = step.poll()
    assert end is not None and (end.code, end.died) == (code, code != 2)
