"""Workers that die, users that stop, and the words of a progress line."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.failure import Failed
from data_prep.pool import Progress, run
from data_prep.progress import Meter, clock
from pipeline.spec import Misuse


def _double(value: int) -> int:
    return 2 * value


def _fail(value: int) -> int:
    raise Misuse(f"file {value}: bad")


def _die_by(how: int) -> int:
    time.sleep(0.2)
    os.kill(os.getpid(), how)
    return how


def _exit(code: int) -> int:
    os._exit(code)


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once(workers: int) -> None:
    assert sorted(run(_double, range(50), workers)) == [2 * n for n in range(50)]
    assert list(run(_double, [], workers)) == []


@pytest.mark.parametrize(
    ("die", "how", "message"),
    [
        (_die_by, signal.SIGKILL, r"killed \(signal 9\), most likely because the memory ran out"),
        (_die_by, signal.SIGSEGV, r"crashed \(SIGSEGV\) in the native code"),
        (_die_by, signal.SIGTERM, r"ended from outside \(signal 15\)"),
        (_exit, 3, r"ended with exit code 3"),
    ],
)
def test_the_death_of_a_worker_names_its_likely_cause(
    die: Callable[[int], int], how: int, message: str
) -> None:
    with pytest.raises(Failed, match=message) as error:
        list(run(die, [how], 2))
    assert "run the same command again" in str(error.value)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_raises_reaches_the_caller(workers: int) -> None:
    with pytest.raises(Misuse, match="file 7: bad"):
        list(run(_fail, [7], workers))


def test_who_stops_early_does_not_wait_for_the_workers() -> None:
    start_s = time.monotonic()
    results = run(_sleep, [0.0, 60.0, 60.0], 2)
    assert next(results) == 0.0
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start_s < 20


def test_ctrl_c_ends_workers_at_once_and_without_their_tracebacks(tmp_path: Path) -> None:
    script = tmp_path / "stop.py"
    script.write_text(
        "import time\nfrom data_prep.pool import run\n"
        "def work(number):\n    open(f'began{number}', 'w').close()\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    try:\n        list(run(work, range(4), 2))\n"
        "    except KeyboardInterrupt:\n        print('stopped')\n"
    )
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("began*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes at once
    out, err = process.communicate(timeout=40)
    assert (out, err) == ("stopped\n", "")


def test_workers_end_when_their_parent_is_gone(tmp_path: Path) -> None:
    script = tmp_path / "gone.py"
    script.write_text(
        "import os, time\nfrom data_prep.pool import run\n"
        "def work(number):\n    open(f'pid{os.getpid()}', 'w').close()\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    list(run(work, range(4), 2))\n"
    )
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("pid*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    pids = [int(path.name.removeprefix("pid")) for path in tmp_path.glob("pid*")]
    assert len(pids) == 2
    while any(map(_is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_running, pids))


def _is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that is set by hand."""
    seconds = [1000.0]
    monkeypatch.setattr("data_prep.progress.time.monotonic", lambda: seconds[0])

    def forward(by_s: float) -> None:
        seconds[0] += by_s

    return forward


def test_a_log_gets_plain_lines_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], now: Callable[[float], None]
) -> None:
    meter = Meter("check", "images", 1_000_000)
    assert (meter.first_s, meter.every_s) == (2.0, 10.0)
    now(10)
    meter.add(20_000)
    meter.say()
    now(480)
    meter.add(980_000)
    meter.say_last()
    assert capsys.readouterr().err.splitlines() == [
        "check: 20,000 of 1,000,000 images (2 %), 2,000/s, 8:10 min left",
        "check: 1,000,000 of 1,000,000 images (100 %), 2,041/s, took 8:10 min",
    ]


def test_the_rate_is_that_of_the_last_minute(
    capsys: pytest.CaptureFixture[str], now: Callable[[float], None]
) -> None:
    meter = Meter("check", "images", 20_000)
    now(1)
    meter.add(10_000)  # found finished by a restart
    for _ in range(20):
        meter.say()
        now(10)
        meter.add(100)
    meter.say()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "check: 12,000 of 20,000 images (60 %), 10/s, 13:20 min left"


def test_a_terminal_gets_one_line_rewritten_in_place(
    monkeypatch: pytest.MonkeyPatch, now: Callable[[float], None]
) -> None:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "40")
    meter = Meter("index", "bytes", 5_000_000_000)
    now(2)
    meter.add(1_500_000_000)
    meter.say()
    meter.say_last()
    first, second = screen.getvalue().split("\r")[1:]
    assert first == "index: 1.50 of 5.00 GB (30 %), 750 MB/s\x1b[K"
    assert second.endswith("\x1b[K\n")


def test_without_a_total_or_progress_nothing_is_promised(
    capsys: pytest.CaptureFixture[str], now: Callable[[float], None]
) -> None:
    for meter in (Meter("list", "files"), Meter("check", "images", 0), Meter("write", "x", 9)):
        now(3)
        meter.say()
    meter = Meter("list", "files")
    meter.add(7)
    now(2)
    meter.say()
    assert capsys.readouterr().err.splitlines() == [
        "list: 0 files, 0/s, 3.0 s",
        "check: 0 of 0 images, 0/s",
        "write: 0 of 9 x (0 %), 0/s",
        "list: 7 files, 3.5/s, 2.0 s",
    ]


def test_a_closed_error_stream_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress("check", "images", 3) as progress:
        progress.add(3)


def test_a_long_task_does_not_look_like_a_hang(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("check", "images", 3):
        time.sleep(0.3)
    assert len(capsys.readouterr().err.splitlines()) == 1, "the first line comes after 2 s"
    monkeypatch.setattr("data_prep.progress.FIRST_S", 0.01)
    monkeypatch.setattr("data_prep.progress.EVERY_S", 0.05)
    with Progress("check", "images", 3):
        time.sleep(0.5)
    assert len(capsys.readouterr().err.splitlines()) >= 3


def test_times_for_people() -> None:
    times = {4.24: "4.2 s", 45.4: "45 s", 119: "119 s", 200: "3:20 min", 7500: "2:05 h"}
    assert {seconds: clock(seconds) for seconds in times} == times
    assert clock(3 * 86400 + 4 * 3600) == "3 d 4 h"
