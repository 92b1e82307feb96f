"""What a host is called, and what its kernel says of a process."""

import os
import signal
import socket

import pytest

from pipeline.run.host import node_name, process_state, start_time


def test_slurms_name_of_a_node_comes_before_the_hosts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert node_name() == socket.gethostname()
    monkeypatch.setenv("SLURMD_NODENAME", "gpu17")
    assert node_name() == "gpu17"


def test_a_process_has_a_state_and_a_start_until_it_is_gone() -> None:
    assert process_state(os.getpid()) == "R"
    assert start_time(os.getpid()) == start_time(os.getpid()) != start_time(1)
    pid = os.fork()
    if not pid:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    assert process_state(pid) == "T" and start_time(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert process_state(pid) == "Z" and start_time(pid) == ""
    os.waitpid(pid, 0)
    assert process_state(pid) == start_time(pid) == ""
