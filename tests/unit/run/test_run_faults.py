"""Faults on purpose: read strictly, met where and as often as they say, free without any."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.run import faults
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Begin an attempt in this process with these faults; forgotten after the test."""

    def begin(*values: dict[str, Any]) -> Path:
        monkeypatch.setenv(faults.VARIABLE, json.dumps(values))
        faults.begin(RunFolder(tmp_path))
        return tmp_path / "faults"

    monkeypatch.setattr(faults, "_plan", None)
    return begin


@pytest.fixture
def child(tmp_path: Path, repo: Path):
    """Start a process that passes the points `step` 1 to 5 as rank 1 with this fault."""

    def run(**fault: Any) -> subprocess.Popen[str]:
        program = (
            "import sys; from pathlib import Path\n"
            "from pipeline.run import faults; from pipeline.run.folder import RunFolder\n"
            "faults.begin(RunFolder(Path(sys.argv[1])))\n"
            "for step in range(1, 6): print(step, flush=True); faults.hit('step', step, 1)\n"
        )
        env = {**os.environ, faults.VARIABLE: json.dumps([fault])}
        return subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=repo, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kill", ["not JSON", "write [{"]),
        ('{"kind": "kill", "step": 1}', ["is no list"]),
        ('[{"kind": "melt", "step": 1}]', ["'faults.0.kind' is 'melt'", "'nospace' or 'cut'"]),
        ('[{"kind": "kill"}]', ["'faults.0.step' is missing; add it"]),
        ('[{"kind": "kill", "step": -1}]', ["'faults.0.step' is -1", "greater than or equal to 0"]),
        ('[{"kind": "kill", "step": 1, "rank": "one"}]', ["'faults.0.rank' is 'one'"]),
        ('[{"kind": "kill", "step": 1, "steps": 2}]', ["'faults.0.steps' is unknown; remove it"]),
        ('[{"kind": "kill", "step": 1, "point": "lunch"}]', ["'faults.0.point' is 'lunch'"]),
        ('[{"kind": "kill", "step": 1, "seconds": 3}]', ["'seconds' belongs to sleep; remove it"]),
        ('[{"kind": "sleep", "step": 1}]', ["a sleep needs 'seconds'; add it"]),
        ('[{"kind": "cut", "step": 1}]', ["a cut needs 'bytes'; add it"]),
        ('[{"kind": "cut", "step": 1, "bytes": 9, "rank": 1}]', ["rank 0, which writes"]),
        ('[{"kind": "nan", "step": 1, "point": "data"}]', ["a nan strikes at point forward"]),
        ('[{"kind": "kill", "step": 3, "point": "setup"}]', ["write 'step': 0"]),
        (
            '[{"kind": "sleep", "step": 1, "seconds": 1, "every": true, "once": true}]',
            ["'every' and 'once' exclude each other"],
        ),
    ],
)
def test_a_wrong_value_is_refused_with_variable_field_and_remedy(
    text: str, words: list[str]
) -> None:
    with pytest.raises(Misuse) as found:
        faults.parse(text)
    assert str(found.value).startswith("PIPELINE_FAULTS: ")
    for word in words:
        assert word in str(found.value)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(Misuse) as found:
        faults.parse('[{"kind": "melt", "step": 1}, {"kind": "kill"}]')
    assert "faults.0.kind" in str(found.value) and "faults.1.step" in str(found.value)


def test_without_the_variable_nothing_is_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    faults.begin(RunFolder(tmp_path))
    items = iter([1, 2])
    assert faults.each(items, "data", 1, 0) is items
    assert not faults.hit("step", 1, 0)
    faults.wrote(tmp_path / "missing", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["kill", "term", "usr2"])
def test_a_signal_ends_the_rank_at_its_step_and_once_only(child, kind: str) -> None:
    first = child(kind=kind, rank=1, step=3)
    said, _ = first.communicate(timeout=60)
    number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr2": signal.SIGUSR2}[kind]
    assert first.returncode == -number
    assert said.split("\n")[:3] == ["1", "2", "3"]
    assert f"rank 1: fault on purpose: {kind} at step 3 (step)" in said
    again = child(kind=kind, rank=1, step=3)
    again.communicate(timeout=60)
    assert again.returncode == 0


def test_a_stopped_rank_stands_still_until_it_is_continued(child) -> None:
    process = child(kind="stop", rank=1, step=2)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and said.endswith("5\n")


def test_exit_leaves_with_its_code_and_without_once_each_time(child) -> None:
    for _ in range(2):
        process = child(kind="exit", rank=1, step=2, code=7, once=False)
        process.communicate(timeout=60)
        assert process.returncode == 7


def test_a_fault_waits_for_its_rank_point_and_step(start) -> None:
    marks = start({"kind": "raise", "rank": 1, "step": 5, "point": "evaluate"})
    assert not faults.hit("evaluate", 5, 0)
    assert not faults.hit("step", 5, 1)
    assert not faults.hit("evaluate", 4, 1)
    with pytest.raises(RuntimeError, match="fault on purpose at step 5"):
        faults.hit("evaluate", 8, 1)
    assert not faults.hit("evaluate", 12, 1), "once"
    (mark,) = marks.iterdir()
    assert mark.name == "000-raise-rank1-step5.json"
    assert json.loads(mark.read_text())["step"] == 8


def test_what_an_attempt_met_the_next_does_not_meet(start) -> None:
    fault = {"kind": "nan", "step": 2}
    start(fault)
    assert faults.hit("forward", 2, 0)
    start(fault)
    assert not faults.hit("forward", 2, 0)
    start({**fault, "once": False})
    assert faults.hit("forward", 2, 0) and not faults.hit("forward", 3, 0)


def test_a_slow_rank_is_slow_at_every_step_and_says_so_once(
    start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", naps.append)
    start({"kind": "sleep", "rank": 0, "step": 2, "seconds": 0.5, "point": "data", "every": True})
    assert list(faults.each(iter("abc"), "data", 1, 0)) == ["a", "b", "c"]
    assert naps == [0.5] * 3, "before the steps 2 and 3, and before the end"
    said = capsys.readouterr().out.splitlines()
    assert said == ["rank 0: fault on purpose: sleep at each step from 2 on (data)"]


def test_a_full_disk_cuts_the_file_where_the_space_ended(start, tmp_path: Path) -> None:
    start({"kind": "nospace", "step": 20, "bytes": 150})
    folder = tmp_path / "step-20.tmp"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(bytes(100))
        if name == "a":
            faults.wrote(folder / name, 20)
        elif name == "b":
            with pytest.raises(OSError, match="No space left") as found:
                faults.wrote(folder / name, 20)
            assert (found.value.errno, found.value.filename) == (errno.ENOSPC, str(folder / "b"))
            assert (folder / "b").stat().st_size == 50
        else:
            faults.wrote(folder / name, 20)
