"""Starts ranks without their imports: a process that has imported torch forks a rank on demand.

    python -m tests.distributed.starter

A rank computes for a second or two here, and before that it imports torch, its compiler and
DeepSpeed for four to ten, in which nothing of ours is at work. A request is a line of JSON on
stdin, its answer a line on stdout; ranks and starter end when stdin closes. Jobs, the launcher
and SLURM start fresh processes in their own tests.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

REPO = Path(__file__).resolve().parents[2]


class Starter:
    """The tests' end: one starter process, ready for requests at once."""

    def __init__(self) -> None:
        env = {key: v for key, v in os.environ.items() if not key.startswith(("COVERAGE", "SLURM"))}
        # CUDA must not be touched before a fork; NVML tells whether there is a device.
        env |= {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.starter"],
            cwd=REPO,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests, which end what they started
        )

    def start(self, words: list[str], env: dict[str, str], log: Path) -> "Rank":
        """Start `python -m WORDS` in the checkout, with this environment; output goes to `log`."""
        answer = self.ask({"words": words, "env": env, "log": str(log)})
        return Rank(self, int(answer["pid"]))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer."""
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None and answers is not None
        asked.write(json.dumps(request).encode() + b"\n")
        asked.flush()
        line = answers.readline()
        assert line, f"the ranks' starter ended with {self._process.wait(10)}"
        return json.loads(line)

    def close(self) -> None:
        """End it, and with it every rank that still runs."""
        self._process.communicate(timeout=30)


class Rank:
    """A rank, as `subprocess.Popen` would show it."""

    def __init__(self, starter: Starter, pid: int) -> None:
        self._starter, self.pid = starter, pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or minus the signal that ended it; None while it runs."""
        if self._code is None:
            self._code = self._starter.ask({"poll": self.pid})["code"]
        return self._code

    def wait(self, timeout_s: float = 60) -> int:
        """Wait for the end; raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout_s)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Signal it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def preload() -> None:
    """Import what ranks spend their start on."""
    import torch._dynamo
    import torch.distributed.fsdp

    if not torch.cuda.is_available():  # DeepSpeed asks devices about themselves
        from pipeline.parallel.build import import_deepspeed

        import_deepspeed()
        import_module("deepspeed.runtime.zero.muon.original_muon")  # as every ZeRO stage does

    # Ranks need not look through all that again, as ZeRO 3 has it done for each model.
    gc.collect()
    gc.freeze()
    threads = [thread.name for thread in threading.enumerate()]
    tasks = list(Path("/proc/self/task").iterdir())
    assert len(tasks) == 1, f"a fork would lose threads: {threads}, {len(tasks)} in all"


def serve(answers: TextIO) -> dict[str, Any] | None:
    """Answer requests; returns the request in each rank, and None in the starter at its end."""
    running: set[int] = set()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            running.discard(pid)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            pid = os.fork()
            if pid == 0:
                answers.close()
                return request
            running.add(pid)
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return None


def become(request: dict[str, Any]) -> None:
    """Make this forked process the rank: environment, files, arguments, coverage."""
    os.environ.clear()
    os.environ.update(request["env"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    atexit.register(gc.unfreeze)  # or libraries report as leaks what was frozen
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        import coverage

        coverage.process_startup()
    sys.argv = request["words"]
    runpy.run_module(request["words"][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    to_tests = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is imported may print
    preload()
    if (asked := serve(to_tests)) is None:
        os._exit(0)  # nothing to tidy up but modules, for seconds
    become(asked)
