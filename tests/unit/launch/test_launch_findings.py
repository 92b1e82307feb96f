"""Each finding of a preflight, good and bad: disk, memory, samples, versions, SLURM's settings."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from launch import answer
from launch.answer import Node, Question, existing, look, look_at_node
from launch.network import network
from launch.preflight import disk
from launch.preflight.data import check_samples
from launch.preflight.disk import check_room, check_speed
from launch.preflight.findings import Findings
from launch.preflight.memory import check_memory, slot_bytes
from launch.preflight.slurm import check_partition, doubts, requeue_wait_s
from launch.preflight.versions import FLOORS, check_versions
from launch.preflight.world import check_world
from launch.requests import Request
from launch.start import check_nodes
from launch.steps import Allocation, SrunLauncher

GOOD = Node(
    versions={"python": "3.12.11", "torch": "2.15.0+cu130", "mlflow": "3.17.2", "pillow": "13.0"},
    shm_bytes=64 << 30, memory_bytes=500 << 30, has_memfd=True, write_mb_s=900.0, rename_ms=1.0,
    disk_error="", interface="ib0", unreachable=(),
)  # fmt: skip


def test_a_host_is_measured_and_nothing_is_left_behind(tmp_path):
    node = look_at_node(existing(tmp_path / "runs" / "new"), "127.0.0.1", "", ())
    assert node.disk_error == "" and node.write_mb_s > 0 and node.memory_bytes > 1 << 20
    assert node.interface == "lo" and node.has_memfd
    assert {"python", "torch", "mlflow", "pillow", "deepspeed"} <= set(node.versions)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_other_nodes_do_not_see_is_no_shared_one(tmp_path, target, found):
    node = look_at_node(tmp_path, "", str(tmp_path / "token"), ())
    check_speed(target(), node, "gpu2", found)
    assert "from gpu2" in found.mistakes[0] and "not a shared file system" in found.mistakes[0]
    (tmp_path / "token").touch()
    assert look_at_node(tmp_path, "", str(tmp_path / "token"), ()).disk_error == ""


def test_a_disk_that_takes_no_file_is_a_mistake(tmp_path, monkeypatch, target, found):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answer.os, "fsync", full)
    check_speed(target(), look_at_node(tmp_path, "", "", ()), "gpu1", found)
    assert "cannot be written: No space left on device; choose another runs=" in found.mistakes[0]
    assert not list(tmp_path.glob(".probe*"))


def test_only_the_first_rank_of_a_node_looks_at_it_and_rank_0_at_servers(tmp_path):
    question = Question("127.0.0.1", 9, str(tmp_path), servers=("http://127.0.0.1:9",))
    assert look(1, "gpu1", question).node is None
    first = look(0, "gpu1", question, is_first=True).node
    other = look(8, "gpu2", question, is_first=True).node
    assert first is not None and "http://127.0.0.1:9" in first["unreachable"][0]
    assert other is not None and not other["unreachable"]


def test_an_interface_that_is_not_there_is_named_with_those_that_are(tmp_path):
    question = Question("127.0.0.1", 9, str(tmp_path), interface="ib7")
    assert "has no interface 'ib7', only" in look(1, "gpu1", question).network
    assert look(1, "gpu1", replace(question, interface="lo")).network == ""


@pytest.mark.parametrize(("speed", "warned"), [(900.0, False), (1.0, True)])
def test_a_checkpoint_must_be_safe_within_the_time_to_save(target, found, speed, warned):
    check_speed(target("model=v2_l"), replace(GOOD, write_mb_s=speed), "gpu1", found)
    assert bool(found.warnings) is warned and not found.mistakes
    assert not warned or "raise SAVE_S and --signal" in found.warnings[0]


@pytest.mark.parametrize(("free", "total", "wrong"), [(99, 10**6, True), (0, 0, False)])
def test_files_may_run_out_before_bytes_do(target, found, monkeypatch, free, total, wrong):
    space = {"f_bavail": 10**9, "f_bfree": 10**9, "f_blocks": 10**9, "f_frsize": 4096}
    files = SimpleNamespace(f_files=total, f_favail=free, **space)
    monkeypatch.setattr(disk.os, "statvfs", lambda path: files)
    check_room(target(), found)
    assert bool(found.mistakes) is wrong
    assert not wrong or "99 files (inodes) are left" in found.mistakes[0]


def test_the_loaders_images_must_fit_into_a_nodes_memory(target, found):
    small, large = target("loader.workers=1"), target("loader.workers=64")
    assert slot_bytes(small, 2) < slot_bytes(large, 2)
    assert slot_bytes(small, 8) < slot_bytes(small, 1), "fewer ranks hold more each"
    check_memory(large, GOOD, "gpu1", (8, 8), found)
    assert not found.warnings
    check_memory(large, replace(GOOD, memory_bytes=1 << 20), "gpu1", (8, 8), found)
    assert "memory" in found.warnings[0] and "lower loader.workers" in found.warnings[0]


@pytest.mark.parametrize(
    ("shm_mb", "ranks", "memfd", "warned"),
    [(1024, 8, True, False), (64, 8, True, True), (64, 1, True, False), (64, 1, False, True)],
)
def test_shared_memory_must_hold_what_each_rank_puts_there(
    target, found, shm_mb, ranks, memfd, warned
):
    node = replace(GOOD, shm_bytes=shm_mb << 20, has_memfd=memfd)
    check_memory(target(), node, "gpu1", (ranks, ranks), found)
    assert bool(found.warnings) is warned
    assert not warned or "--shm-size" in found.warnings[0]


def test_samples_are_compared_with_their_checksums(target, found, digits):
    data = f"data={digits}"
    check_samples(target(data), found)
    assert "samples" in found.good[0] and not found.mistakes
    check_samples(target(data), found, limit_s=-1)
    assert found.good[1].split()[1] == "0", "the time is bounded"


@pytest.mark.parametrize("policy", ["strict", "budget"])
def test_a_flipped_bit_is_found_before_the_job_is_queued(
    target, found, digits, tmp_path, policy, copy_shards
):
    shards = copy_shards(digits, tmp_path / "shards")
    manifest = training_manifest(target, shards)
    tar = shards / manifest.split("train").shards[0].file
    data = bytearray(tar.read_bytes())
    data[1024 + 600] ^= 1  # within the first image
    tar.write_bytes(data)
    check_samples(target(f"data={shards}", f"loader.bad.policy={policy}"), found)
    told = found.mistakes if policy == "strict" else found.warnings
    assert told and "crc32c" in told[0]


@pytest.mark.parametrize("name", FLOORS)
def test_a_version_below_its_floor_names_the_hole(found, name):
    check_versions({**GOOD.versions, name: "0.1.0"}, "gpu1", found)
    (warning,) = found.warnings
    assert f"{name} 0.1.0 on gpu1" in warning and "CVE-" in warning and "install" in warning


@pytest.mark.parametrize(
    ("python", "holed"),
    [("3.11.7", True), ("3.11.13", False), ("3.12.3", True), ("3.13.4", False), ("3.14.0", False)],
)
def test_pythons_own_archive_reader_has_a_floor_in_each_minor_version(found, python, holed):
    check_versions({**GOOD.versions, "python": python}, "gpu1", found)
    assert bool(found.warnings) is holed
    assert not holed or "CVE-2025-4517" in found.warnings[0]


def test_what_is_new_enough_is_told_once(found):
    check_versions(GOOD.versions, "gpu1", found)
    assert found.good == ["version  python 3.12.11, torch 2.15.0+cu130, mlflow 3.17.2, pillow 13.0"]


@pytest.mark.parametrize(
    ("asked", "most", "wrong"),
    [("7-00:00:00", "1-00:00:00", True), ("12:00:00", "1-00:00:00", False),
     ("7-00:00:00", "UNLIMITED", False)],
)  # fmt: skip
def test_more_time_than_the_partition_allows_is_a_mistake(found, asked, most, wrong):
    facts = {"PartitionName": "gpu", "MaxTime": most, "PreemptMode": "OFF"}
    check_partition(facts, Request(time=asked), {}, found)
    assert bool(found.mistakes) is wrong
    assert not wrong or f"allows MaxTime={most}: ask for less" in found.mistakes[0]
    again = Findings()
    check_partition(facts, Request(time=asked), {"SBATCH_TIMELIMIT": "10"}, again)
    assert not again.mistakes, "the site's own limit goes before the script's"


@pytest.mark.parametrize(
    ("grace", "mode", "warned"),
    [("5", "REQUEUE", True), ("60", "REQUEUE", False), ("0", "OFF", False)],
)
def test_a_grace_too_short_to_save_is_a_warning(found, grace, mode, warned):
    facts = {"PartitionName": "low", "GraceTime": grace, "PreemptMode": mode}
    check_partition(facts, Request(), {}, found)
    assert bool(found.warnings) is warned
    assert not warned or "GraceTime of partition low is 5 s" in found.warnings[0]


@pytest.mark.parametrize(("value", "named"), [("0 sec", "never"), ("3600 sec", "late")])
def test_a_lost_node_must_be_noticed(value, named):
    (line,) = doubts({"SlurmdTimeout": value})
    assert named in line and "ask for 300 s" in line
    assert doubts({"SlurmdTimeout": "300 sec"}) == []


def test_the_wait_of_a_requeue_follows_the_credential():
    assert requeue_wait_s({}) == 125
    assert requeue_wait_s({"AuthInfo": "socket=/run/munge,cred_expire=30"}) == 35


def test_an_elastic_request_tells_the_worlds_of_fewer_nodes(target, found):
    request = Request(nodes="2-4", ntasks_per_node=2)
    assert (request.ranks, request.fewest_ranks) == (8, 4)
    check_world(target(), request, None, found)
    assert found.good == [
        "ranks    8, all with work",
        "ranks    with fewer nodes: 4 of 4, 4 of 6",
    ]


def test_groups_of_batchnorm_bound_the_world_too(target):
    grouped = target("stages.micro_batches=24", "model.bn_group=8", "loader.lanes=24",
                     "batch.global_size=96")  # fmt: skip
    assert grouped.largest_world(7) == 4, "6 ranks cannot share groups of 8"
    assert "in groups of 8" in grouped.idle_note(7)


def test_a_warning_of_many_nodes_is_told_once_with_their_number(target, found):
    poor = replace(GOOD, shm_bytes=1 << 20)
    check_nodes({"gpu1": poor, "gpu2": poor, "gpu3": GOOD}, target(), (6, 2), found)
    (warning,) = found.warnings
    assert "of gpu1 has 1 MB" in warning and warning.endswith("(and 1 more nodes)")


def test_environments_that_differ_between_nodes_are_named(target, found):
    other = replace(GOOD, versions={**GOOD.versions, "torch": "2.14.0"})
    check_nodes({"gpu1": GOOD, "gpu2": other}, target(), (4, 2), found)
    assert "do not have the same versions" in found.warnings[0] and "2.14.0" in found.warnings[0]


def test_a_server_that_a_node_cannot_reach_is_a_warning(target, found):
    alone = replace(GOOD, unreachable=("https://mlflow.example.org: timed out",))
    check_nodes({"gpu1": alone}, target(), (2, 2), found)
    assert "https://mlflow.example.org: timed out from gpu1" in found.warnings[0]


@pytest.fixture
def two_nodes(programs):
    programs("scontrol", 'if [ "$2" = hostnames ]; then echo gpu1 gpu2; fi')
    programs("squeue", "true")
    return SrunLauncher(Allocation("12", 0, "gpu[1-2]", 2, 8, 4), {})


@pytest.mark.parametrize(
    ("rate", "word"), [(2400.0, "2400 MB/s in an all-reduce"), (12.0, "is slow")]
)
def test_the_network_is_measured_between_the_nodes(two_nodes, programs, rate, word):
    line = f'all-reduce {{"rank": 0, "backend": "gloo", "mb_s": {rate}, "num_bytes": 16777216}}'
    calls = programs("srun", f"echo '0: {line}'")
    good, bad = network(two_nodes, ["python"], {"NETWORK_INTERFACE": "ib0"}, "eth0", 60)
    assert word in good + bad and bool(bad) is (rate < 100) and "2 nodes over ib0" in good + bad
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1" in calls.read_text()
    assert calls.read_text().split("--label ")[1].startswith("python -m launch.allreduce 45")


def test_a_network_that_does_not_work_names_interface_and_remedy(two_nodes, programs):
    programs("srun", "echo 'RuntimeError: Gloo connectFullMesh failed' >&2; exit 1")
    good, bad = network(two_nodes, ["python"], {}, "eth0", 60)
    assert not good and "over eth0: RuntimeError: Gloo" in bad and "NETWORK_INTERFACE" in bad


def test_a_network_that_hangs_is_given_up_in_time(two_nodes, programs):
    programs("srun", "exec sleep 30")
    _, bad = network(two_nodes, ["python"], {"NETWORK_TEST_S": "1"}, "", 60)
    assert "not done in 1 s" in bad
    assert network(two_nodes, ["python"], {"NETWORK_TEST_S": "0"}, "", 60) == ("", "")


def test_the_network_gets_what_the_other_checks_left_of_their_time(two_nodes, programs):
    calls = programs("srun", "exit 1")
    network(two_nodes, ["python"], {}, "", 20.4)
    assert calls.read_text().strip().endswith("python -m launch.allreduce 20")
    calls.unlink()
    assert "not measured: the other checks" in network(two_nodes, ["python"], {}, "", 3)[1]
    assert not calls.exists()


def training_manifest(target, shards):
    manifest = target(f"data={shards}").found.manifest
    assert manifest is not None
    return manifest
