"""The roll call: who answers, what each rank sees, and what is said of those that do not."""

import socket
import sys

import pytest

from launch.answer import Answer, Question, look
from launch.rollcall import Absent, LostRanks, call, problems, read_answers, summary


@pytest.fixture
def door():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text("{}")
    return tmp_path / "shards"


def test_a_rank_for_which_all_is_well_complains_of_nothing(door, shards, tmp_path):
    question = Question("127.0.0.1", door, str(tmp_path / "runs" / "new"), str(shards))
    assert look(3, "gpu1", question) == Answer(3, "gpu1")


def test_a_rank_names_what_it_lacks(shards, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        question = Question("127.0.0.1", port, str(tmp_path / "run"), str(tmp_path / "none"))
        answer = look(3, "gpu1", question)
    assert answer.data == f"does not see {tmp_path}/none/manifest.json"
    assert f"127.0.0.1, port {port}" in answer.address and "NETWORK_INTERFACE" in answer.address


def test_no_folder_is_looked_for_where_shards_come_from_a_url(door, tmp_path, tasks):
    question = Question("127.0.0.1", door, str(tmp_path))
    assert look(3, "gpu1", question) == Answer(3, "gpu1")
    assert problems(call(tasks(2), [sys.executable], question, 2, 60), 2) == []


@pytest.fixture
def question(shards, tmp_path):
    return Question("127.0.0.1", 0, str(tmp_path), str(shards))


@pytest.fixture
def tasks(tmp_path):
    """A made-up srun: runs the program once for each rank, except those left out."""

    def command(num_ranks: int, *left_out: int, then: str = "") -> list[str]:
        script = tmp_path / "srun"
        ranks = " ".join(str(rank) for rank in range(num_ranks) if rank not in left_out)
        script.write_text(
            f"#!/bin/sh\nfor rank in {ranks}; do\n"
            "  export SLURMD_NODENAME=node$((rank / 2)) SLURM_PROCID=$rank\n"
            '  SLURM_LOCALID=$((rank % 2)) "$@" | sed "s/^/$rank: /"\n'
            f"done\n{then}\n"
        )
        script.chmod(0o755)
        return [str(script)]

    return command


def test_all_ranks_answer_over_srun(tasks, question):
    answers = call(tasks(4), [sys.executable], question, 4, 60)
    assert [(a.rank, a.host) for a in answers] == [
        (0, "node0"), (1, "node0"), (2, "node1"), (3, "node1")
    ]  # fmt: skip
    assert problems(answers, 4) == []
    assert summary(answers, 4) == "4 of 4 ranks on 2 nodes answered"


def test_a_rank_that_does_not_answer_is_named(tasks, question):
    answers = call(tasks(6, 2, 4, 5), [sys.executable], question, 6, 60)
    assert problems(answers, 6) == ["rank 2, 4-5 of 6 did not answer"]


def test_silence_ends_after_its_time_and_says_who_was_heard(tasks, question):
    srun = tasks(3, 2, then="sleep 20")
    with pytest.raises(LostRanks, match="only 2 ranks answered in 8 s; silent: rank 2"):
        call(srun, [sys.executable], question, 3, timeout_s=8)


def test_an_srun_that_fails_is_quoted(tasks, question):
    srun = tasks(0, then="echo 'srun: error: Invalid node name' >&2; exit 1")
    with pytest.raises(Absent, match="srun ended with 1: srun: error: Invalid node name") as error:
        call(srun, [sys.executable], question, 1, 60)
    assert not isinstance(error.value, LostRanks), "another node would not help"


def test_an_srun_that_cannot_reach_a_node_asks_for_other_nodes(tasks, question):
    said = "srun: error: Task launch for StepId=1.0 failed on node n2: Communication failure"
    with pytest.raises(LostRanks, match="failed on node n2"):
        call(tasks(0, then=f"echo '{said}' >&2; exit 1"), [sys.executable], question, 0, 60)


def test_ranks_with_the_same_trouble_share_a_line():
    answers = [Answer(rank, f"gpu{rank // 4}", data="no" * (rank >= 4)) for rank in range(8)]
    assert problems(answers, 8) == ["rank 4-7 on gpu1: no"]


def test_other_words_in_the_output_are_no_answers():
    text = 'module loaded\n0: roll-call {"rank": 0, "host": "a"}\nwarning: roll of paper\n'
    assert read_answers(text) == [Answer(0, "a")]
