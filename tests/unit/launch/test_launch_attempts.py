"""The loop of attempts over real processes, and the command line around it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch.attempts import Job, Work, give_up_allocation, run_attempts, run_single
from launch.ledger import Ledger
from launch.local import LocalLauncher
from launch.ranks import End
from launch.stop import StopRequest, stop_requests, watch
from pipeline.run.folder import RunFolder
from tests.unit.data.faulty_server import Fault, serving

JOB = Job("here", 0, in_slurm=False)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "counted")


@pytest.fixture
def attempt(rank_program, folder):
    """Run attempts of counting ranks to their end; returns the exit code."""

    def run(steps: int, fault: str = "", world: int = 2, stop: StopRequest | None = None) -> int:
        command = [*rank_program, str(folder.path), str(steps), fault]
        launcher = LocalLauncher(world, "here")
        return run_attempts(launcher, Work(command, world, folder), JOB, stop or StopRequest())

    return run


def test_a_run_that_ends_is_done_in_one_attempt(attempt, folder, capsys):
    assert attempt(3) == 0
    (only,) = Ledger(folder).attempts("here")
    assert (only.status, only.last_step) == ("done", 3)
    assert "supervise: DONE" in capsys.readouterr().out


def test_wrong_use_is_not_tried_again(attempt, folder, capsys):
    assert attempt(3, "misuse", 1) == 2
    assert len(Ledger(folder).attempts("here")) == 1
    assert "REFUSED" in (out := capsys.readouterr().out) and "field 'x' is 1: use 2" in out


def test_what_one_rank_alone_refuses_is_not_tried_again_and_told(folder, capsys):
    """A node without the shards: rank 0, which writes the outcomes, waits for its peer in vain."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from pipeline.run.folder import RunFolder\n"
        "if os.environ['RANK'] == '0': time.sleep(60)\n"
        f"RunFolder(Path({str(folder.path)!r})).write_rank_error(0, 'no shards here')\n"
        "sys.exit(2)"
    )
    work = Work([sys.executable, "-c", code], 2, folder)
    assert run_attempts(LocalLauncher(2, "here"), work, JOB, StopRequest()) == 2
    (only,) = Ledger(folder).attempts("here")
    assert only.status == "misuse"
    assert "no shards here" in capsys.readouterr().out.partition("cause: ")[2].splitlines()[0]


def test_no_progress_stops_after_three_restarts_with_the_cause_first(attempt, folder, capsys):
    assert attempt(3, "raise", 1) == 1
    assert [a.status for a in Ledger(folder).attempts("here")] == ["crashed"] * 4
    lines = capsys.readouterr().out.partition("supervise: FAILED")[2].splitlines()
    assert lines[0] == ": 3 restarts without a new checkpoint after step 0"
    assert "cause: ValueError: poison" in lines[1]
    assert len(lines) == 6, "and the four attempts"


def test_the_words_of_the_rank_that_failed_come_before_rank_0s(attempt, monkeypatch, capsys):
    said = "node2: OSError: shard-000012.tar: disk on fire"
    monkeypatch.setattr(RunFolder, "read_rank_error", lambda self, attempt: said)
    assert attempt(3, "raise", 1) == 1
    cause = capsys.readouterr().out.partition("cause: ")[2].splitlines()[0]
    assert cause.index("shard-000012.tar") < cause.index("ValueError: poison")


def test_what_all_ranks_say_is_told_once(attempt, monkeypatch, capsys):
    said = "node2: ValueError: poison"
    monkeypatch.setattr(RunFolder, "read_rank_error", lambda self, attempt: said)
    assert attempt(3, "raise", 1) == 1
    cause = capsys.readouterr().out.partition("cause: ")[2].splitlines()[0]
    assert cause.count("ValueError: poison") == 1


def test_a_hang_is_told_by_the_watchdogs_words_alone(attempt, folder, monkeypatch, capsys):
    said = "hang: rank 1 on node2 in section step at step 12: no sign of life for 11 s"
    monkeypatch.setattr("launch.attempts.hang_text", lambda folder, attempt: said)
    monkeypatch.setattr(RunFolder, "read_rank_error", lambda self, attempt: "peer is gone")
    assert attempt(3, "raise", 1) == 1
    found = Ledger(folder).attempts("here")
    assert [(a.status, a.reason) for a in found] == [("hung", said)] * 4
    assert f"cause: {said}\n" in capsys.readouterr().out


def test_a_broken_sample_is_met_twice_and_named(attempt, folder, monkeypatch, capsys):
    said = "node2: BrokenSample: s.tar: sample 'k' (row 3): crc32c is 1; run `verify`"
    monkeypatch.setattr(RunFolder, "read_rank_error", lambda self, attempt: said)
    assert attempt(3, "raise", 1) == 1
    assert [a.status for a in Ledger(folder).attempts("here")] == ["crashed"] * 2
    lines = capsys.readouterr().out.partition("supervise: FAILED")[2].splitlines()
    assert "the same sample could not be used: s.tar: sample 'k' (row 3)" in lines[0]
    assert said in lines[1]


def test_after_a_stop_request_no_attempt_starts(attempt, folder, capsys):
    assert attempt(3, stop=StopRequest("SIGTERM")) == 75
    assert Ledger(folder).attempts("here") == []
    assert "run the same command again" in capsys.readouterr().out


def test_a_job_whose_nodes_do_not_answer_asks_for_others_and_not_for_ever(programs, folder, capsys):
    calls = programs("scontrol", "echo 'JobId=12 JobState=RUNNING'")
    job = Job("12", 0, in_slurm=True)
    codes = [give_up_allocation(folder, job, "rank 4-7 did not answer") for _ in range(11)]
    assert codes == [75] * 10 + [1]
    assert calls.read_text().count("requeue 12") == 10
    last = capsys.readouterr().out.partition("supervise: FAILED")[2].splitlines()
    assert "interrupted 10 times" in last[0] and "rank 4-7 did not answer" in last[1]


def test_a_job_that_slurm_will_not_requeue_says_how_to_go_on(programs, monkeypatch, capsys):
    monkeypatch.setattr("launch.attempts.RETRY_S", 0.0)
    calls = programs("scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1")
    job = Job("12", 0, in_slurm=True)
    assert run_single(LocalLauncher(1, "x"), ["true"], job, StopRequest("SIGUSR2")) == 75
    assert "presently disabled; submit the same command again" in capsys.readouterr().out
    assert len(calls.read_text().splitlines()) == 3


def test_a_folder_that_cannot_be_written_ends_with_its_name(attempt, folder, capsys):
    folder.path.parent.mkdir(parents=True)
    folder.path.write_text("in the way")
    assert attempt(3) == 1
    assert str(folder.path) in capsys.readouterr().out


@pytest.mark.parametrize(("wish", "code", "told"), [("", 1, "FAILED: "), ("USR2", 75, "not rec")])
def test_a_full_disk_keeps_no_job_from_its_requeue(
    programs, rank_program, folder, monkeypatch, capsys, wish, code, told
):
    calls = programs("scontrol", "echo 'JobId=12 JobState=RUNNING'")
    stop = StopRequest()

    def full(*_: object) -> None:
        stop.name = wish
        raise OSError(28, "No space left on device", str(folder.path / "attempts"))

    monkeypatch.setattr(Ledger, "end", full)
    work = Work([*rank_program, str(folder.path), "2"], 1, folder)
    job = Job("12", 0, in_slurm=True)
    assert run_attempts(LocalLauncher(1, "here"), work, job, stop) == code
    assert f"{told}" in (out := capsys.readouterr().out) and "No space left on device; make" in out
    assert (calls.exists() and "requeue 12" in calls.read_text()) is bool(wish)


def test_a_log_that_is_full_ends_no_supervisor():
    code = "from launch.stop import say; import os; say('one'); say('two'); os._exit(75)"
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", code], stdout=full).returncode == 75


@pytest.mark.parametrize(("restart", "lost", "code"), [(0, True, 75), (10, True, 1), (0, False, 1)])
def test_a_job_of_one_process_whose_node_is_lost_comes_back(
    programs, monkeypatch, restart, lost, code
):
    calls = programs("scontrol", "echo 'JobId=12 JobState=RUNNING'")

    class Lost:
        def poll(self) -> End:
            return End(1, "Node failure on gpu1", died=False, lost=lost)

    launcher = LocalLauncher(1, "x")
    monkeypatch.setattr(launcher, "start", lambda *_: Lost())
    assert run_single(launcher, ["true"], Job("12", restart, True), StopRequest()) == code
    assert calls.exists() is (code == 75)


def test_ranks_that_do_not_save_are_ended_after_the_deadline(rank_program, folder, monkeypatch):
    monkeypatch.setenv("SAVE_S", "0.3")
    launcher = LocalLauncher(1, "here")
    step = launcher.start([*rank_program, str(folder.path), "600", "deaf"], 1, 0)
    while folder.latest_step() < 1:
        time.sleep(0.02)
    start = time.monotonic()
    end = watch(step, StopRequest("SIGUSR2"))
    assert end.died and 0.3 <= time.monotonic() - start < 5


def test_signals_are_noted_once_and_only_a_second_ctrl_c_hurries():
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.name, stop.again) == ("SIGUSR2", False)
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.name, stop.again) == ("SIGINT", True)
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("code", "wish", "expected"),
    [(0, "", 0), (2, "", 2), (1, "", 1), (75, "", 75), (9, "TERM", 75)],
)
def test_a_job_of_one_process_tells_by_its_exit_code(code, wish, expected, monkeypatch):
    stop = StopRequest()
    launcher = LocalLauncher(1, "here")
    start = launcher.start

    def start_then_stop(*args):
        step = start(*args)
        stop.name = wish
        return step

    monkeypatch.setattr(launcher, "start", start_then_stop)
    command = [sys.executable, "-c", f"import signal; signal.signal(12, 1); exit({code})"]
    assert run_single(launcher, command, JOB, stop) == expected


@pytest.fixture
def cli(repo, config, rank_program, folder, tmp_path):
    """Start `python -m launch local` on the config, with counting ranks in place of training."""
    ranks = tmp_path / "python"
    ranks.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n'
                     f'exec {" ".join(rank_program)} {folder.path} $STEPS $FAULT\n')  # fmt: skip
    ranks.chmod(0o755)

    def start(ranks_asked: int, steps: int, *overrides: str, fault: str = "") -> subprocess.Popen:
        env = {**os.environ, "RANK_PYTHON": str(ranks), "STEPS": str(steps), "FAULT": fault}
        return subprocess.Popen(
            [sys.executable, "-m", "launch", "local", "--ranks", str(ranks_asked), "train",
             str(config), *overrides],
            cwd=repo, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return start


def test_the_command_line_runs_the_pipeline_with_config_and_overrides(cli, config, tmp_path):
    process = cli(2, 3, "lr.peak=0.2", "seed=3")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    said = (tmp_path / "said").read_text().splitlines()
    assert said == [f"-m pipeline train {config} lr.peak=0.2 seed=3"] * 2


def test_shards_at_a_url_are_counted_there(cli, config, tmp_path, make_manifest):
    make_manifest(tmp_path / "up", num_train=640)
    cache = f"data.shards.folder={tmp_path}/cache"
    with serving(tmp_path / "up") as server:
        process = cli(2, 3, f"data={server.url}", cache)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0, out
        assert server.asked == [("manifest.json", 0)]


@pytest.mark.parametrize(("status", "code"), [(404, 2), (503, 1)])
def test_a_url_without_shards_ends_before_a_rank_starts(cli, folder, tmp_path, status, code):
    words = (f"data.shards.folder={tmp_path}/cache", "data.shards.retries=0")
    with serving(tmp_path) as server:
        server.always("manifest.json", Fault(status=status))
        process = cli(2, 3, f"data={server.url}", *words)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == code and not folder.path.exists()
    assert f"{server.url}/manifest.json" in out and f"the server answers {status}" in out
    assert "error: " in out and "Traceback" not in out


def test_places_without_work_are_told_and_stay_empty(cli, tmp_path):
    process = cli(3, 3)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "2 of 3 ranks work and 1 stay idle" in out
    assert len((tmp_path / "said").read_text().splitlines()) == 2


def test_the_world_makes_groups_of_the_recipes_batch_norm(cli, tmp_path):
    """6 ranks share 12 micro-batches, but not in groups of 4: they would refuse each attempt."""
    words = ("stages.micro_batches=12", "batch.global_size=48", "loader.lanes=48")
    process = cli(6, 3, *words, "model.bn_group=4")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "4 of 6 ranks work and 2 stay idle" in out
    assert "in groups of 4 (model.bn_group)" in out
    assert len((tmp_path / "said").read_text().splitlines()) == 4


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(cli, folder, number):
    process = cli(2, 600)
    while folder.latest_step() < 2:
        time.sleep(0.02)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 75, out
    saved = folder.latest_step()
    process = cli(2, saved + 3)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and f"step {saved} to {saved + 3}" in out
    assert folder.read_outcome(1) is not None, "the second attempt has a number of its own"


def test_a_killed_rank_is_started_again_in_the_same_command(cli, folder):
    process = cli(2, 30)
    while folder.latest_step() < 2:
        time.sleep(0.02)
    os.kill(int((folder.path / "pids" / "0.1").read_text()), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "rank 1 was killed by SIGKILL; connection closed by peer; restart 1 of 3" in out


@pytest.mark.parametrize(
    ("overrides", "named"),
    [(("lr.peek=1",), "lr.peek"), (("data=nowhere",), "nowhere"), (("seed",), "seed")],
)
def test_a_wrong_setting_ends_with_2_before_a_rank_starts(cli, folder, overrides, named):
    process = cli(1, 3, *overrides)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 2 and "error: " in out and named in out
    assert "Traceback" not in out and not folder.path.exists()
