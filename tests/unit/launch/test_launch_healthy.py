"""Nodes that struck twice: left out of the next attempt, or of the job's next start, or kept."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import pytest

from launch.attempts import give_up_allocation, hand_back, run_attempts
from launch.cluster import NoAnswer
from launch.healthy import choose, leave_behind, to_exclude
from launch.ledger import Ledger
from launch.local import LocalLauncher
from launch.stop import StopRequest
from launch.strikes import Strikes
from launch.work import Job, Work
from pipeline.run.folder import RunFolder

JOB = Job("12", 0, in_slurm=True)
HERE = replace(JOB, in_slurm=False)
NODES = ("gpu1", "gpu2", "gpu3", "gpu4")
SINFO = "\n".join(f"echo 'gpu{n}|{state}|gpu:8|h100'" for n, state in
                  enumerate(("mixed", "allocated", "idle", "idle*", "drained"), 1))  # fmt: skip


class Spread(LocalLauncher):
    """Ranks of this host that are said to be on several nodes, two on each."""

    def __init__(self, nodes: tuple[str, ...] = NODES) -> None:
        super().__init__(2 * len(nodes), "here")
        self.nodes: Sequence[str] = nodes
        self.ranks_per_node = 2

    def without(self, nodes) -> Self:
        return type(self)(tuple(node for node in self.nodes if node not in nodes))


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    (run.path / "attempts").mkdir(parents=True)
    return run


@pytest.fixture
def strikes(folder):
    """`strikes("gpu2", "gpu3")`: nodes that have struck twice."""

    def make(*nodes: str) -> Strikes:
        found = Strikes(folder)
        for number in range(2):
            found.note(nodes, number, "crashed: Killed")
        return found

    return make


@pytest.fixture
def work(folder):
    return Work(["true"], 8, folder)


def test_where_all_nodes_are_good_all_are_used(work, strikes):
    choice = choose(Spread(), work, strikes("elsewhere"), JOB)
    assert choice.launcher is not None and choice.launcher.nodes == NODES
    assert choice.work.world == 8


def test_a_node_is_left_out_and_the_largest_world_that_shares_the_work_goes_on(
    work, strikes, capsys
):
    shared = replace(work, largest=lambda capacity: max(n for n in (1, 2, 4, 8) if n <= capacity))
    choice = choose(Spread(), shared, strikes("gpu2"), JOB)
    assert choice.launcher is not None and choice.launcher.nodes == ("gpu1", "gpu3", "gpu4")
    assert choice.work.world == 4
    said = capsys.readouterr().out
    assert "gpu2 ended attempts twice (attempt 0: crashed: Killed; attempt 1" in said
    assert "left out, 4 of 8 ranks go on" in said


@pytest.mark.parametrize(("least", "world"), [("0.75", 6), ("0.8", None), ("1", None)])
def test_a_site_says_how_many_ranks_may_go_on_alone(
    work, strikes, programs, monkeypatch, least, world
):
    programs("scontrol", "echo 'JobId=12 JobState=RUNNING NumNodes=4 Partition=gpu'")
    programs("sinfo", 'for n in 1 2 3 4 5; do echo "gpu$n|mixed|gpu:8|h100"; done')
    monkeypatch.setenv("LEAST_WORLD", least)
    choice = choose(Spread(), work, strikes("gpu2"), replace(JOB, num_nodes=4))
    assert (choice.work.world if choice.launcher else None) == world


@pytest.mark.parametrize("others", ["gpu3|idle|gpu:8|h100", "gpu3|mixed|gpu:8|h100"])
def test_where_too_few_are_left_other_nodes_are_asked_for(work, strikes, programs, others):
    programs("scontrol", "echo 'JobId=12 JobState=RUNNING NumNodes=1 Partition=gpu'")
    programs("sinfo", f"echo 'gpu1|mixed|gpu:8|h100'; echo '{others}'")
    choice = choose(Spread(("gpu1",)), work, strikes("gpu1"), JOB)
    assert choice.launcher is None and "other nodes are asked for" in choice.why


@pytest.mark.parametrize(
    "others",
    ["gpu3|idle*|gpu:8|h100", "gpu3|drained|gpu:8|h100", "gpu3|idle|gpu:4|h100",
     "cpu1|idle|(null)|(null)"],
)  # fmt: skip
def test_where_the_cluster_has_no_other_node_of_the_kind_it_is_used_again(
    work, strikes, programs, others, capsys
):
    programs("scontrol", "echo 'JobId=12 JobState=RUNNING NumNodes=1 Partition=gpu'")
    programs("sinfo", f"echo 'gpu1|mixed|gpu:8|h100'; echo '{others}'")
    choice = choose(Spread(("gpu1",)), work, strikes("gpu1"), JOB)
    assert choice.launcher is not None and choice.launcher.nodes == ("gpu1",)
    assert "used again, as the partition has too few other nodes" in capsys.readouterr().out


def test_a_slurm_that_does_not_answer_changes_nothing(work, strikes, programs):
    programs("scontrol", "echo 'Unable to contact' >&2; exit 1")
    launcher = Spread(("gpu1",))
    assert choose(launcher, work, strikes("gpu1"), JOB).launcher is launcher
    assert choose(launcher, work, strikes("gpu1"), HERE).launcher is launcher
    assert to_exclude(JOB, strikes("gpu1")) == ""


def test_a_slurm_that_does_not_answer_in_a_restart_ends_no_job(work, strikes, monkeypatch, capsys):
    def without(self, nodes):
        raise NoAnswer("scontrol show node gpu1: no answer in 30 s")

    monkeypatch.setattr(Spread, "without", without)
    launcher = Spread()
    assert choose(launcher, work, strikes("gpu2"), JOB).launcher is launcher
    assert "is used again: scontrol show node gpu1: no answer" in capsys.readouterr().out


def test_a_node_that_is_silent_at_the_roll_call_gets_a_strike(folder, programs):
    programs("scontrol", "echo 'JobId=12 JobState=RUNNING NumNodes=4 Partition=gpu'")
    programs("sinfo", SINFO)
    why = "only 6 ranks answered in 180 s; silent: rank 2-3"
    assert give_up_allocation(folder, JOB, why, Spread()) == 75
    assert list(Strikes(folder).by_node()) == ["gpu2"]
    assert Strikes(folder).left_out() == {}, "once is chance"


def test_what_the_user_excluded_stays_excluded(strikes, programs):
    calls = programs(
        "scontrol",
        'if [ "$2" = hostnames ]; then echo old1 old2; exit; fi\n'
        "echo 'JobId=12 JobState=RUNNING NumNodes=2 Partition=gpu ExcNodeList=old[1-2]'",
    )
    programs("sinfo", SINFO)
    names = to_exclude(JOB, strikes("gpu1"))
    assert names == "gpu1,old1,old2"
    leave_behind(JOB, names)
    assert calls.read_text().splitlines()[-1] == "update JobId=12 ExcNodeList=gpu1,old1,old2"


@pytest.mark.parametrize("excluded", ["(null)", "gpu3"])
def test_a_job_that_gives_its_nodes_back_is_left_as_many_as_it_had(strikes, programs, excluded):
    """SLURM counts down NumNodes of a job that was requeued, and waits for ever for too many."""
    programs(
        "scontrol",
        'if [ "$2" = hostnames ]; then echo gpu3; exit; fi\n'
        f"echo 'JobId=12 JobState=COMPLETING NumNodes=1 Partition=gpu ExcNodeList={excluded}'",
    )
    programs("sinfo", 'for n in 1 2 3 4; do echo "gpu$n|mixed|gpu:8|h100"; done')
    job = replace(JOB, num_nodes=3)
    one = to_exclude(job, strikes("gpu1"))
    assert one == ("gpu1" if excluded == "(null)" else "")
    assert to_exclude(job, strikes("gpu2")) == "", "gpu1 is left out already"


def test_a_requeue_does_not_wait_for_what_slurm_says_of_other_nodes(
    strikes, programs, monkeypatch, capsys
):
    monkeypatch.setattr("launch.healthy.QUICK_S", 0.3)
    calls = programs("scontrol", "echo 'JobId=12 JobState=RUNNING NumNodes=2 Partition=gpu'")
    programs("sinfo", "exec sleep 20")
    begun = time.monotonic()
    assert hand_back(JOB, strikes("gpu1")) == 75
    assert time.monotonic() - begun < 10
    assert calls.read_text().splitlines()[-1] == "requeue 12"
    assert "gpu1 cannot be excluded: sinfo" in capsys.readouterr().out


def test_without_a_node_to_leave_behind_slurm_is_not_asked(strikes, programs):
    calls = programs("scontrol", "exit 1")
    leave_behind(JOB, to_exclude(JOB, strikes()))
    assert not calls.exists()


def test_an_update_that_is_refused_is_told_and_the_job_goes_on(programs, capsys):
    programs("scontrol", "echo 'Access/permission denied' >&2; exit 1")
    leave_behind(JOB, "gpu1")
    assert "gpu1 could not be excluded" in capsys.readouterr().out


def test_a_rank_that_dies_twice_on_a_node_runs_elsewhere_the_third_time(folder, tmp_path, capsys):
    """Rank 2 or 3 is on gpu2, as long as there are four ranks; then the work gets done."""
    program = tmp_path / "rank"
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$WORLD_SIZE" = 4 ]; then [ "$RANK" = 3 ] && sleep 0.3 && kill -9 $$; sleep 9; fi\n'
        f'echo \'{{"status": "done", "step": 1, "reason": ""}}\' > '
        f"{folder.path}/attempts/attempt-000$PIPELINE_ATTEMPT.json\n"
    )
    program.chmod(0o755)
    launcher = Naming(("gpu1", "gpu2"))
    work = Work([str(program)], 4, folder)
    assert run_attempts(launcher, work, HERE, StopRequest()) == 0
    assert [a.status for a in Ledger(folder).attempts("12")] == ["crashed", "crashed", "done"]
    out = capsys.readouterr().out
    assert "left out, 2 of 4 ranks go on" in out
    assert "left out after two strikes (attempts/nodes.json): gpu2" in out.partition("DONE")[2]


class Naming(Spread):
    """Says who left first as srun does."""

    def start(self, command, world, attempt):
        step = super().start(command, world, attempt)
        poll = step.poll

        def named():
            end = poll()
            if end is None or not end.killed:
                return end
            return replace(end, note="srun ended with 137: gpu2: task 3: Killed")

        step.poll = named
        return step
