"""The contract of both launchers: worlds, ports, the ranks' environment and command."""

import socket

import pytest

from launch.ranks import (
    FIRST_PORT,
    NUM_PORTS,
    free_port,
    idle_note,
    largest_world,
    meeting_port,
    rank_command,
    rank_environment,
)
from pipeline.models.table import ModelSpec


@pytest.mark.parametrize(
    ("capacity", "micro_batches", "world"),
    [(32, [32], 32), (32, [64, 32], 32), (32, [24], 24), (7, [8], 4), (8, [12, 8], 4), (5, [1], 1)],
)
def test_the_world_is_the_largest_that_shares_every_stage(capacity, micro_batches, world):
    assert largest_world(capacity, micro_batches) == world
    assert all(count % world == 0 for count in micro_batches)


@pytest.mark.parametrize(
    ("capacity", "micro_batches", "group", "world"),
    [(6, [12], 4, 4), (12, [12], 4, 12), (11, [24], 8, 8), (3, [12], 4, 2), (3, [12], 6, 3)],
)
def test_the_world_divides_a_group_of_batch_norm_or_holds_whole_ones(
    capacity, micro_batches, group, world
):
    assert largest_world(capacity, micro_batches, group) == world
    ModelSpec(name="tiny", bn_group=group).together(world)


def test_no_number_of_micro_batches_is_named_where_groups_are_the_reason():
    assert "set stages.micro_batches" not in idle_note(6, [12], 4)
    assert "set stages.micro_batches to a multiple of 8" in idle_note(8, [12], 4)


def test_idle_places_are_told_with_the_remedy():
    note = idle_note(32, [24, 24, 48])
    assert "24 of 32 ranks work and 8 stay idle" in note
    assert "24, 48 micro-batches" in note and "ask for 24 ranks" in note
    assert idle_note(32, [64]) == ""


def test_another_attempt_restart_or_job_meets_at_another_port():
    ports = {meeting_port(j, r, a) for j in ("1", "2") for r in (0, 1) for a in (0, 1, 2)}
    assert len(ports) == 12
    assert all(FIRST_PORT <= port < FIRST_PORT + NUM_PORTS for port in ports)
    assert meeting_port("1", 0, 0) == meeting_port("1", 0, 0)


def test_a_port_in_use_is_passed_over():
    with socket.socket() as taken:
        first = free_port(meeting_port("taken", 0, 0))
        taken.bind(("", first))
        taken.listen()
        other = free_port(first)
    assert other != first and FIRST_PORT <= other < FIRST_PORT + NUM_PORTS


def test_the_last_port_is_followed_by_the_first():
    last = FIRST_PORT + NUM_PORTS - 1
    with socket.socket() as taken:
        try:
            taken.bind(("", last))
            taken.listen()
        except OSError:
            pass  # somebody else has it: just as good
        assert FIRST_PORT <= free_port(last) < last


def test_ranks_are_told_where_to_meet_and_which_attempt_this_is(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    env = rank_environment("10.0.0.1", 20001, 3, 4)
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("10.0.0.1", "20001")
    assert (env["PIPELINE_ATTEMPT"], env["OMP_NUM_THREADS"]) == ("3", "4")


def test_what_the_site_or_user_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("NETWORK_INTERFACE", "ib0")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib1")
    env = rank_environment("10.0.0.1", 20001, 3, 4)
    assert env["OMP_NUM_THREADS"] == "2"
    assert (env["GLOO_SOCKET_IFNAME"], env["NCCL_SOCKET_IFNAME"]) == ("ib0", "ib1")


def test_the_command_of_a_rank_is_the_pipeline_in_the_sites_container():
    plain = rank_command(["train", "c.yaml"], "/venv/python", {})
    assert plain == ["/venv/python", "-m", "pipeline", "train", "c.yaml"]
    site = {"RANK_PREFIX": "apptainer exec --nv i.sif", "RANK_PYTHON": "python3"}
    inside = rank_command(["train", "c.yaml", "name=a b"], "/venv/python", site)
    assert inside == [
        "apptainer", "exec", "--nv", "i.sif", "python3", "-m", "pipeline", "train", "c.yaml",
        "name=a b",
    ]  # fmt: skip
