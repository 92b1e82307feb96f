"""Ranks as processes: they get their places, save on request, and none outlives another."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch import local
from launch.local import LocalLauncher
from pipeline.run.folder import RunFolder


@pytest.fixture
def launcher():
    return LocalLauncher(2, "test")


def wait(step, timeout_s: float = 20.0):
    deadline = time.monotonic() + timeout_s
    while (end := step.poll()) is None:
        assert time.monotonic() < deadline, "the ranks did not end"
        time.sleep(0.02)
    return end


def until(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time, pathlib\n{code}"]


def test_each_rank_knows_its_place_and_where_to_meet(launcher, tmp_path):
    code = (
        "names = 'RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT PIPELINE_ATTEMPT'.split()\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text("
        "' '.join(os.environ[n] for n in names))"
    )
    end = wait(launcher.start(python(code), 2, 5))
    assert (end.code, end.died) == (0, False)
    first, second = ((tmp_path / str(rank)).read_text().split() for rank in (0, 1))
    assert first[:4] == ["0", "2", "0", "127.0.0.1"] and second[:4] == ["1", "2", "1", "127.0.0.1"]
    assert first[4] == second[4] and first[5] == "5"


def test_a_dead_rank_takes_the_others_along(launcher, monkeypatch, tmp_path):
    monkeypatch.setattr(local, "GRACE_CRASH_S", 0.2)
    pid = tmp_path / "pid"
    code = (
        f"path = pathlib.Path({str(pid)!r})\n"
        "if os.environ['RANK'] == '0':\n"
        "    path.write_text(str(os.getpid())); time.sleep(60)\n"
        "while not path.exists(): time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)"
    )
    end = wait(launcher.start(python(code), 2, 0))
    assert end.died and end.note == "rank 1 was killed by SIGKILL"
    assert gone(int(pid.read_text()))


def test_after_a_crash_rank_0_has_the_time_to_write_why(launcher, tmp_path):
    note = tmp_path / "outcome"
    code = (
        "if os.environ['RANK'] == '1': sys.exit(1)\n"
        f"time.sleep(0.5); pathlib.Path({str(note)!r}).write_text('connection closed'); sys.exit(1)"
    )
    end = wait(launcher.start(python(code), 2, 0))
    assert note.exists() and end.note == "rank 1 exited with 1"


def test_an_orderly_end_is_no_reason_to_kill(launcher):
    code = "time.sleep(0.5 * int(os.environ['RANK'])); sys.exit(75)"
    end = wait(launcher.start(python(code), 2, 0))
    assert (end.code, end.died, end.note) == (75, False, "")


def test_a_refusal_by_one_rank_ends_the_others_that_wait_for_it(launcher):
    """Rank 0 alone looks at the shards and the lease; the others wait to meet it for minutes."""
    started = time.monotonic()
    code = "if os.environ['RANK'] == '0': sys.exit(2)\ntime.sleep(60)"
    end = wait(launcher.start(python(code), 2, 0))
    assert (end.code, end.died, end.note) == (2, False, "")
    assert time.monotonic() - started < 15


def test_a_crash_explains_more_than_an_orderly_end_before_it(launcher):
    code = "time.sleep(0.3 * int(os.environ['RANK'])); sys.exit(3 * int(os.environ['RANK']))"
    end = wait(launcher.start(python(code), 2, 0))
    assert (end.code, end.note) == (3, "rank 1 exited with 3")


def test_forward_reaches_every_rank_and_kill_their_children(launcher, rank_program, tmp_path):
    folder = RunFolder(tmp_path / "run")
    step = launcher.start([*rank_program, str(folder.path), "600"], 2, 0)
    until(lambda: folder.latest_step() > 1)
    step.forward()
    assert wait(step).code == 75

    child = tmp_path / "child"
    code = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    step = launcher.start(python(code), 1, 0)
    until(lambda: child.exists() and child.read_text())
    step.kill()
    wait(step)
    until(lambda: gone(int(child.read_text())))


def test_ranks_die_with_a_killed_supervisor(tmp_path, rank_program, repo):
    run = tmp_path / "run"
    code = (
        "import time; from launch.local import LocalLauncher\n"
        f"LocalLauncher(2, 'x').start({[*rank_program, str(run), '600']!r}, 2, 0)\n"
        "time.sleep(60)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], cwd=repo)
    pids = run / "pids"
    until(lambda: pids.is_dir() and len(list(pids.iterdir())) == 2)
    until(lambda: all(path.read_text() for path in pids.iterdir()))
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    until(lambda: all(gone(int(path.read_text())) for path in pids.iterdir()))
