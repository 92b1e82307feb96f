"""The watchdog on real processes: what hangs is found in time, named, dumped and ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engine.settings import WatchSpec
from pipeline.engine.watchdog import MARGIN_S, NEAR_S, PATIENCE_S, Watchdog
from pipeline.run.beats import Section, read_beats
from pipeline.run.files import write_json
from pipeline.run.folder import RunFolder
from pipeline.run.hang import hang_file, hang_text, read_hang, stacks_file
from pipeline.spec import Misuse
from tests.unit.engine.watched_rank import DEADLINE_S

FOUND_S = DEADLINE_S + 5
"""A hang is found within its deadline and 5 s."""
WORLDS = {"sleep": 3, "behind": 2, "stop": 2, "lock": 2, "slow": 2, "lock-alone": 1}


class Case:
    """The ranks of one fault."""

    def __init__(self, base: Path, fault: str, repo: Path) -> None:
        self.world = WORLDS[fault]
        self.folder = RunFolder(base / fault)
        self.folder.path.mkdir()
        program = [sys.executable, "-m", "tests.unit.engine.watched_rank", str(self.folder.path)]
        self.log = base / f"{fault}.log"
        self.codes: list[int | None] = []
        with self.log.open("wb") as log:
            self.ranks = [
                subprocess.Popen(
                    [*program, str(rank), str(self.world), fault.removesuffix("-alone")],
                    cwd=repo, stdout=log, stderr=subprocess.STDOUT,
                )
                for rank in range(self.world)
            ]  # fmt: skip

    def stacks(self, rank: int) -> str:
        return stacks_file(self.folder, 0, rank).read_text()

    def verdict(self) -> dict:
        values = read_hang(self.folder, 0)
        assert values is not None, self.log.read_text()
        return values

    @property
    def found_after_s(self) -> float:
        """Seconds from the last beginning of a section to the verdict."""
        return self.verdict()["found_s"] - max(b["since_s"] for b in self.verdict()["beats"])


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, repo: Path) -> Iterator[dict[str, Case]]:
    """All faults at once: what takes time is to wait."""
    base = tmp_path_factory.mktemp("watched")
    cases = {fault: Case(base, fault, repo) for fault in WORLDS}
    everyone = [rank for case in cases.values() for rank in case.ranks]
    imports_s = 120  # a dozen processes on a busy machine
    deadline_s = time.monotonic() + imports_s + DEADLINE_S + MARGIN_S + 2 * PATIENCE_S
    stopped = cases["stop"].ranks[1]
    try:
        while any(rank.poll() is None for rank in everyone if rank is not stopped):
            assert time.monotonic() < deadline_s, [rank.args for rank in everyone]
            time.sleep(0.1)
        for case in cases.values():
            case.codes = [rank.poll() for rank in case.ranks]
        yield cases
    finally:
        for rank in everyone:
            rank.kill()
            rank.wait()


def test_a_rank_that_sleeps_is_named_and_all_ranks_dump_and_leave(cases: dict[str, Case]) -> None:
    case = cases["sleep"]
    assert case.codes == [1, 1, 1]
    text = case.verdict()["text"]
    assert text.startswith("hang: rank 2 on ") and " in section data at step 3: " in text
    assert case.found_after_s < FOUND_S
    assert case.verdict()["without_stacks"] == []
    assert "watched_rank.py" in case.stacks(2) and "in fail" in case.stacks(2)
    for rank in (0, 1):
        assert "in main" in case.stacks(rank) and "in wait" in case.stacks(rank)
    assert case.log.read_text().count("hang: ") == 1, "one rank prints it, with the table"
    assert case.folder.read_rank_error(0).endswith(text)


def test_a_rank_with_fewer_collectives_is_late_in_the_same_section(cases: dict[str, Case]) -> None:
    text = cases["behind"].verdict()["text"]
    assert text.startswith("hang: rank 1 on ") and " in section step at step 3: " in text


def test_a_stopped_rank_is_named_and_said_to_be_stopped(cases: dict[str, Case]) -> None:
    case = cases["stop"]
    assert case.codes == [1, None], "a stopped process cannot leave; its launcher kills it"
    text = case.verdict()["text"]
    assert text.startswith("hang: rank 1 on ") and "it is stopped, as by SIGSTOP" in text
    assert " in section step at step 3: " in text, "though no beat ever told it"
    assert case.found_after_s < FOUND_S
    (left_out,) = case.verdict()["without_stacks"]
    assert left_out["rank"] == 1 and "SIGSTOP" in left_out["why"]
    assert case.stacks(0) and not case.stacks(1)


def test_a_rank_that_holds_the_interpreters_lock_is_named_dumped_and_ended(
    cases: dict[str, Case],
) -> None:
    case = cases["lock"]
    assert case.codes == [1, 1]
    text = case.verdict()["text"]
    assert text.startswith("hang: rank 1 on ") and " in section data at step 3: no sign" in text
    assert case.found_after_s < FOUND_S
    assert "Timeout" in case.stacks(1) and "in fail" in case.stacks(1)


def test_a_rank_alone_that_holds_the_lock_leaves_its_stacks(cases: dict[str, Case]) -> None:
    case = cases["lock-alone"]
    assert case.codes == [1]
    assert not hang_file(case.folder, 0).exists(), "nobody could write it"
    text = hang_text(case.folder, 0)
    assert text.startswith("hang: rank 0 on ") and "none of its threads could run" in text
    assert "Timeout" in case.stacks(0) and "in fail" in case.stacks(0)


def test_who_waits_for_a_rank_within_its_own_deadline_goes_on_waiting(
    cases: dict[str, Case],
) -> None:
    assert cases["slow"].codes == [0, 0]
    assert not hang_file(cases["slow"].folder, 0).exists()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def watchdog(folder: RunFolder, **values: float) -> tuple[Watchdog, list[int]]:
    left: list[int] = []
    spec = WatchSpec.parse({"beat_every_s": 0.1, **values}, "test")
    return Watchdog(folder, 0, 0, 1, spec, leave=left.append), left


def test_beats_tell_section_and_step_from_the_start(folder: RunFolder) -> None:
    watch, left = watchdog(folder)
    with watch:
        (first,) = read_beats(folder, 0)
        assert (first.section, first.step, first.pid) == (Section.SETUP, 0, os.getpid())
        watch.count = lambda: 17
        watch.enter(Section.EVALUATE, 12)
        deadline_s = time.monotonic() + 20
        while (beat := read_beats(folder, 0)[0]).section is not Section.EVALUATE:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    assert (beat.step, beat.collectives, left) == (12, 17, [])
    assert beat.since_s > first.since_s and beat.beat_s > first.beat_s


def test_a_section_that_begins_anew_has_its_whole_deadline_again(folder: RunFolder) -> None:
    watch, left = watchdog(folder, step_s=3.0)
    with watch:
        for step in range(8):
            watch.enter(Section.STEP, step)
            time.sleep(0.5)
    assert left == [] and not hang_file(folder, 0).exists()


def test_a_hang_of_an_earlier_process_with_the_same_number_ends_nobody(folder: RunFolder) -> None:
    watch, left = watchdog(folder, step_s=0.5)
    watch.enter(Section.STEP, 5)
    watch._thread.join(30)
    watch.close()
    assert left == [1] and "at step 5" in hang_text(folder, 0)
    watch, left = watchdog(folder)
    with watch:
        time.sleep(1.2)
    assert left == [] and stacks_file(folder, 0, 0).read_text() == ""


def test_a_full_disk_keeps_no_hung_process_alive(folder: RunFolder, monkeypatch, capfd) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    watch, left = watchdog(folder, step_s=0.5)
    for name in ("write_beat", "claim_hang", "write_json"):
        monkeypatch.setattr(f"pipeline.engine.watchdog.{name}", full)
    monkeypatch.setattr(RunFolder, "write_rank_error", full)
    watch.enter(Section.STEP, 5)
    watch._thread.join(30)
    watch.close()
    assert left == [1]
    assert "hang.json not written" in (said := capfd.readouterr().err) and "at step 5" in said


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that gets the time of each look for another rank's verdict."""
    looked: list[float] = []

    def read(folder: RunFolder, attempt: int) -> dict | None:
        looked.append(time.monotonic())
        return read_hang(folder, attempt)

    monkeypatch.setattr("pipeline.engine.watchdog.read_hang", read)
    return looked


@pytest.mark.parametrize(("world", "fewest", "most"), [(1, 4, 9), (1000, 1, 2)])
def test_many_ranks_look_seldom_for_a_verdict(
    folder: RunFolder, monkeypatch, world: int, fewest: int, most: int
) -> None:
    looked = count_looks(monkeypatch)
    with Watchdog(folder, 0, 3, world, WatchSpec()):
        time.sleep(3.2)
    assert fewest <= len(looked) - 1 <= most, "one look is for what an earlier process left"


def test_a_rank_of_many_near_its_deadline_sees_a_verdict_at_once(folder: RunFolder) -> None:
    left: list[int] = []
    watch = Watchdog(folder, 0, 3, 1000, WatchSpec(), leave=left.append)
    watch.enter(Section.STEP, 7)
    time.sleep(0.7)  # the look that comes before twenty seconds without one
    write_json(hang_file(folder, 0), {"text": "hang: rank 5", "without_stacks": []})
    time.sleep(1.2)
    assert left == []
    now = watch._now
    watch._now = replace(now, end_s=time.monotonic() + NEAR_S - 1)
    watch._thread.join(3)
    watch.close()
    assert left == [1] and stacks_file(folder, 0, 3).read_text()


def test_a_rank_that_gets_on_while_the_beats_are_read_does_not_hang(
    folder: RunFolder, monkeypatch
) -> None:
    watch, left = watchdog(folder, step_s=0.5)

    def slowly(*args: object) -> list:
        watch.enter(Section.CHECKPOINT, 5)
        return []

    monkeypatch.setattr("pipeline.engine.watchdog.read_beats", slowly)
    with watch:
        watch.enter(Section.STEP, 5)
        deadline_s = time.monotonic() + 20
        while watch._now.section is Section.STEP:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        time.sleep(1.2)
    assert left == [] and not hang_file(folder, 0).exists()
    assert stacks_file(folder, 0, 0).read_text() == ""


@pytest.mark.parametrize("field", ["setup_s", "compile_s", "data_s", "step_s", "evaluate_s"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_deadline_of_nothing_is_refused(field: str, value: float) -> None:
    with pytest.raises(Misuse, match=rf"{field}.*\n?.*use 86400"):
        WatchSpec.parse({field: value}, "test")


def test_a_deadline_too_short_for_its_beats_is_refused() -> None:
    WatchSpec.parse({"data_s": 15}, "test")
    with pytest.raises(Misuse, match="data_s is 6, beat_every_s 5.*set beat_every_s to 2 or less"):
        WatchSpec.parse({"data_s": 6}, "test")


def test_a_deadline_too_short_for_the_beats_of_very_many_ranks_is_refused() -> None:
    spec = WatchSpec.parse({"step_s": 30}, "test")
    spec.check_world(500)
    with pytest.raises(Misuse, match="step_s is 30: 1000 ranks beat every 20 s.* 60 or more"):
        spec.check_world(1000)


def test_every_section_has_a_deadline() -> None:
    spec = WatchSpec()
    assert [getattr(spec, spec.field(section)) for section in Section] == [
        1800, 3600, 600, 600, 3600, 1800, 1800,
    ]  # fmt: skip
    assert (spec.shortest, spec.longest) == (("data_s", 600), ("compile_s", 3600))


def test_entering_a_section_is_cheap(folder: RunFolder) -> None:
    watch, _ = watchdog(folder)
    with watch:
        watch.enter(Section.STEP, 0)
        began_s = time.thread_time()
        for step in range(1000):
            watch.enter(Section.STEP, step)
        assert (time.thread_time() - began_s) / 1000 < 100e-6
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
