"""The sender as a process: dead servers, killed senders, signals, and a parent that is gone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse
from pipeline.tracking.client import Unreachable, connect
from pipeline.tracking.delivery import mlflow_run_id
from pipeline.tracking.position import unsent
from pipeline.tracking.sender import main, start_sender, sync
from pipeline.tracking.settings import TrackingSpec
from pipeline.tracking.spool import Spool

Sent = Callable[[TrackingSpec, RunFolder], dict[str, list[tuple[int, float]]]]
Wait = Callable[[Callable[[], object]], None]

PATIENCE_S = 240
"""A sender gives way to all other processes; where these are many, its imports alone take long."""


def status(spec: TrackingSpec, run: RunFolder) -> str:
    assert spec.uri is not None
    return connect(spec.uri).get_run(mlflow_run_id(run.spool) or "").info.status


def test_it_sends_while_the_run_goes_on_and_ends_with_it(
    run: RunFolder, spec: TrackingSpec, sent: Sent
) -> None:
    spool = Spool(run.spool)
    start = time.perf_counter()
    sender = start_sender(run, spec)
    assert time.perf_counter() - start < 1.0
    spool.metrics(1, {"loss": 1.0})
    assert sender.drain(PATIENCE_S) == 0
    assert sender.process.poll() is None
    spool.metrics(2, {"loss": 2.0})
    spool.finish("FINISHED")
    assert sender.drain(PATIENCE_S) == 0
    assert sender.process.wait(PATIENCE_S) == 0
    assert sent(spec, run)["loss"] == [(1, 1.0), (2, 2.0)]
    assert status(spec, run) == "FINISHED"


def test_killed_senders_lose_and_double_nothing(
    run: RunFolder, spec: TrackingSpec, sent: Sent
) -> None:
    spool = Spool(run.spool)
    sender, step = start_sender(run, spec), 0
    for seconds in (2.3, 2.8, 3.3):  # somewhere in its start or its work
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            step += 1
            spool.metrics(step, {"loss": step, "lr": -step})
            time.sleep(0.005)
        sender.process.kill()
        sender.process.wait()
        sender = start_sender(run, spec)
    spool.finish("FINISHED")
    assert sender.drain(PATIENCE_S) == 0
    right = [(s, float(s)) for s in range(1, step + 1)]
    assert sent(spec, run) == {"loss": right, "lr": [(s, -v) for s, v in right]}


def test_a_sender_that_died_is_started_once_more_at_the_end(
    run: RunFolder, spec: TrackingSpec, sent: Sent
) -> None:
    spool = Spool(run.spool)
    sender = start_sender(run, spec)
    sender.process.kill()
    sender.process.wait()
    spool.metrics(1, {"loss": 1.0})
    assert sender.drain(PATIENCE_S) == 0 and sender.restarted
    assert sent(spec, run) == {"loss": [(1, 1.0)]}


def test_signals_of_the_ranks_do_not_end_it(
    run: RunFolder, spec: TrackingSpec, wait_until: Wait
) -> None:
    spool = Spool(run.spool)
    sender = start_sender(run, spec)
    assert sender.drain(PATIENCE_S) == 0
    for name in ("SIGTERM", "SIGUSR2", "SIGINT", "SIGHUP", "SIGUSR1"):
        sender.process.send_signal(getattr(signal, name))
    spool.metrics(1, {"loss": 1.0})
    assert sender.drain(PATIENCE_S) == 0 and sender.process.poll() is None
    assert os.getsid(sender.process.pid) != os.getsid(0)
    spool.finish("FINISHED")
    assert sender.process.wait(PATIENCE_S) == 0


def test_a_killed_training_is_sent_to_the_end_and_marked_killed(
    run: RunFolder, spec: TrackingSpec, repo: Path, wait_until: Wait, sent: Sent
) -> None:
    code = f"""
import os, signal
from pathlib import Path
from pipeline.run.folder import RunFolder
from pipeline.tracking.sender import start_sender
from pipeline.tracking.settings import TrackingSpec
from pipeline.tracking.spool import Spool
run = RunFolder(Path({str(run.path)!r}))
spool = Spool(run.spool)
print(start_sender(run, TrackingSpec(uri={spec.uri!r})).process.pid, flush=True)
spool.metrics(7, {{"loss": 0.5}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    sender = int(done.stdout)
    wait_until(lambda: not Path(f"/proc/{sender}").exists())
    assert unsent(run.spool) == 0
    assert sent(spec, run)["loss"] == [(7, 0.5)]
    assert status(spec, run) == "KILLED"


def test_a_dead_server_neither_stops_nor_slows_and_everything_comes_later(
    run: RunFolder, server: Any, sent: Sent, wait_until: Wait
) -> None:
    spec = TrackingSpec(uri=server.uri)
    spool = Spool(run.spool)
    sender = start_sender(run, spec)
    took = []
    for step in range(200):
        start = time.perf_counter()
        spool.metrics(step, {"loss": step, "lr": 0.1})
        took.append(time.perf_counter() - start)
        time.sleep(0.01)
    spool.finish("FINISHED")
    assert sorted(took)[100] < 1e-3 and sum(took) < 0.5
    log = run.spool / "sender.log"
    wait_until(lambda: "does not answer" in log.read_text())
    assert sender.drain(1.0) == 203
    sender.process.kill()
    sender.process.wait()
    with pytest.raises(Unreachable, match=f"MLflow at {server.uri} does not answer"):
        sync(run, spec, timeout_s=0.1)
    server.serve()
    assert sync(run, spec) == 0
    assert sync(run) == 0
    assert sent(spec, run) == {
        "loss": [(s, float(s)) for s in range(200)], "lr": [(s, 0.1) for s in range(200)]
    }  # fmt: skip
    assert status(spec, run) == "FINISHED"
    assert log.read_text().count("does not answer") == 1


@pytest.mark.slow
def test_a_server_that_is_killed_or_stopped_in_between_costs_nothing(
    run: RunFolder, server: Any, sent: Sent
) -> None:
    spec = TrackingSpec(uri=server.uri)
    server.serve()
    spool = Spool(run.spool)
    sender = start_sender(run, spec)
    step = 0

    def train(seconds: float) -> None:
        nonlocal step
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            step += 1
            spool.metrics(step, {"loss": step})
            time.sleep(0.01)

    train(4.0)
    server.kill()
    train(2.0)
    server.serve()
    train(2.0)
    server.stop()  # takes connections and does not answer
    train(3.0)
    server.go_on()
    train(1.0)
    spool.finish("FINISHED")
    assert sender.drain(PATIENCE_S) == 0
    assert sent(spec, run)["loss"] == [(s, float(s)) for s in range(1, step + 1)]
    assert sender.process.wait(PATIENCE_S) == 0


def test_two_senders_of_one_run_take_turns(run: RunFolder, spec: TrackingSpec, sent: Sent) -> None:
    spool = Spool(run.spool)
    senders = [start_sender(run, spec) for _ in range(2)]
    for step in range(300):
        spool.metrics(step, {"loss": step})
        time.sleep(0.01)
    spool.finish("FINISHED")
    assert [sender.process.wait(PATIENCE_S) for sender in senders] == [0, 0]
    assert sent(spec, run)["loss"] == [(step, float(step)) for step in range(300)]


def test_wrong_use_is_named(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Misuse, match="has no spool/"):
        sync(run)
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 2
    assert "mlflow.json is missing" in capsys.readouterr().err
