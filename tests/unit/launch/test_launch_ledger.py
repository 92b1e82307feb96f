"""The ledger: numbers are unique and grow, cut-off attempts and torn lines are survived."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from launch.ledger import Ledger
from pipeline.run.folder import Outcome, RunFolder, Status


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_an_attempt_is_read_back_with_both_its_ends(folder):
    ledger = Ledger(folder)
    attempt = ledger.begin("7", 0, "node1", -1)
    ledger.end(attempt, "crashed", 12, "node2: ValueError: poison")
    (read,) = Ledger(folder).attempts("7")
    assert (read.number, read.first_step, read.last_step) == (0, -1, 12)
    assert (read.status, read.host) == ("crashed", "node1")
    assert "step 0 to 12" in read.describe() and "ValueError: poison" in read.describe()


def test_numbers_go_on_over_restarts_requeues_and_jobs(folder):
    numbers = [
        Ledger(folder).begin(job, restart, "h", 0).number
        for job, restart in (("7", 0), ("7", 0), ("7", 1), ("8", 0))
    ]
    assert numbers == [0, 1, 2, 3]
    assert [a.number for a in Ledger(folder).attempts("7")] == [0, 1, 2]
    assert [a.number for a in Ledger(folder).attempts("8")] == [3]


def test_a_number_with_an_outcome_is_never_given_again(folder):
    folder.write_outcome(4, Outcome(Status.DONE, 1))
    assert Ledger(folder).begin("1", 0, "h", 0).number == 5


def test_jobs_that_start_at_once_never_share_a_number(folder):
    with ThreadPoolExecutor(16) as pool:
        jobs = pool.map(lambda job: Ledger(folder).begin(str(job), 0, "h", 0).number, range(64))
    assert sorted(jobs) == list(range(64))


def test_an_attempt_without_an_end_was_cut_off(folder):
    Ledger(folder).begin("7", 0, "h", 3)
    (read,) = Ledger(folder).attempts("7")
    assert read.ended_s is None and "cut off, from step 3" in read.describe()


@pytest.mark.parametrize("rest", ['{"event": "start", "numb', "\x00\x00", "[1, 2]\n", "{}\n"])
def test_a_torn_or_foreign_line_costs_only_itself(folder, rest):
    ledger = Ledger(folder)
    attempt = ledger.begin("7", 0, "h", 0)
    with (folder.path / "attempts" / "ledger.jsonl").open("a") as file:
        file.write(rest)
    ledger.end(attempt, "done", 9, "")
    (read,) = ledger.attempts("7")
    assert read.status == "done"


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="run"):
        Ledger(RunFolder(tmp_path / "run")).begin("7", 0, "h", 0)
