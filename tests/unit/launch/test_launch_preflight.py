"""What a preflight finds before a job is queued, and what it only warns of."""

import http.server
import threading
from types import SimpleNamespace

import pytest

from launch.preflight import disk
from launch.preflight.command import preflight
from launch.preflight.data import check_data
from launch.preflight.disk import check_room
from launch.preflight.slurm import check_cluster, doubts
from launch.preflight.tracking import check_mlflow
from launch.preflight.world import check_world
from pipeline.spec import Misuse
from tests.unit.data.faulty_server import Fault, serving


def test_a_missing_data_set_is_a_mistake_and_the_plan_is_printed(config, tmp_path, capsys):
    assert preflight(config, [], 2) == 2
    out = capsys.readouterr().out
    assert f"mistake  field 'data': {tmp_path}/shards: no such folder of shards" in out
    assert "micro-batches" in out and "ok       ranks    2, all with work" in out


def test_shards_at_a_url_are_good_where_it_answers(target, found, tmp_path, make_manifest):
    make_manifest(tmp_path / "up", num_train=640)
    with serving(tmp_path / "up") as server:
        training_there = target(f"data={server.url}", "data.shards.folder=/not/on/this/host")
        check_data(training_there, found)
        assert found.good == [f"data     {server.url}"] and not found.mistakes
    assert training_there.plan.num_samples == 640


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_url_that_does_not_give_the_manifest_is_a_mistake(target, found, tmp_path, status):
    with serving(tmp_path) as server:
        server.always("manifest.json", Fault(status=status))
        data = f"data={{path: '{server.url}', num_train: 6400, num_classes: 10}}"
        words = (f"data.shards.folder={tmp_path}", "data.shards.retries=0")
        check_data(target(data, *words), found)
    (mistake,) = found.mistakes
    assert f"{server.url}/manifest.json" in mistake and f"answers {status}" in mistake


def test_a_url_and_no_folder_for_its_shards_is_a_mistake(config, capsys):
    assert preflight(config, ["data.path=http://127.0.0.1:9"], 2) == 2
    out = capsys.readouterr().out
    assert "mistake  field 'data': field 'data.shards.folder' is empty" in out


@pytest.mark.parametrize("policy", ["strict", "budget"])
def test_shards_that_are_missing_are_found_before_the_job_is_queued(
    target, found, tmp_path, make_manifest, policy
):
    make_manifest(tmp_path / "shards", num_train=640)
    (tmp_path / "shards" / "train" / "shard-000000.tar").unlink()
    check_data(target(f"loader.bad.policy={policy}"), found)
    (told,) = found.mistakes if policy == "strict" else found.warnings
    assert "train/shard-000000.tar is missing" in told


def test_room_for_checkpoints_counts_the_classes_of_the_shards(
    target, found, tmp_path, make_manifest
):
    make_manifest(tmp_path / "shards", num_train=640, num_classes=20_000)
    check_room(target("model=v2_l", "data.num_classes=10"), found)
    (tmp_path / "shards" / "manifest.json").unlink()
    for number in (10, 20_000):
        check_room(target("model=v2_l", f"data.num_classes={number}"), found)
    shards, few, many = (text.split()[1] for text in found.good)
    assert shards == many != few


def test_a_wrong_setting_ends_it_at_once(config):
    with pytest.raises(Misuse, match=r"lr\.peek"):
        preflight(config, ["lr.peek=1"], 2)


def test_a_disk_that_is_too_small_names_both_sizes(target, found, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e6))
    check_room(target(), found)
    assert "0.0 GB free" in found.mistakes[0] and "choose another runs=" in found.mistakes[0]


def test_room_for_checkpoints_grows_with_the_model(target, found):
    check_room(target("model=tiny"), found)
    check_room(target("model=v2_l", "data.num_classes=21841"), found)
    small, large = (float(text.split()[1]) for text in found.good)
    assert small < 1 < large


@pytest.mark.parametrize(("ranks", "warned"), [(8, False), (6, True), (32, True)])
def test_ranks_without_work_are_a_warning(target, found, ranks, warned):
    check_world(target(), None, ranks, found)
    assert bool(found.warnings) is warned and not found.mistakes


def test_without_a_script_and_ranks_nothing_is_claimed(target, found):
    check_world(target(), None, None, found)
    assert "give --ranks N" in found.warnings[0]


def test_no_slurm_is_a_mistake_with_the_way_around(found, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    check_cluster(None, ["c.yaml"], found)
    assert "no sbatch here" in found.mistakes[0] and "launch local" in found.mistakes[0]


@pytest.mark.parametrize(("answer", "refused"), [("exit 0", False), ("exit 1", True)])
def test_the_scheduler_is_asked_with_the_scripts_own_request(
    found, programs, repo, answer, refused
):
    programs("scontrol", "echo 'KillWait = 30 sec'")
    calls = programs("sbatch", f"echo 'sbatch: Job 3 to start at noon' >&2; {answer}")
    script = repo / "launch" / "v2_s_1k.sh"
    check_cluster(script, ["c.yaml", "a=1"], found)
    assert calls.read_text() == f"--test-only {script} a=1\n"
    assert bool(found.mistakes) is refused
    assert "Job 3 to start at noon" in (found.mistakes or found.good)[0]


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"KillWait": "5 sec"}, "KillWait is 5 s"),
        ({"JobRequeue": "0"}, "JobRequeue is 0"),
        ({"PreemptType": "preempt/qos", "SlurmctldParameters": "(null)"}, "preempt_send_user"),
    ],
)
def test_settings_under_which_more_is_lost_are_named(facts, word):
    (line,) = doubts(facts)
    assert word in line


def test_a_cluster_in_order_raises_no_doubts():
    facts = {"PreemptType": "preempt/partition_prio", "KillWait": "30 sec", "JobRequeue": "1",
             "SlurmctldParameters": "preempt_send_user_signal,enable_configless"}  # fmt: skip
    assert doubts(facts) == []
    assert doubts({"PreemptType": "preempt/none", "KillWait": "60 sec"}) == []


def test_an_mlflow_server_that_is_down_is_only_a_warning(target, found):
    check_mlflow(target("tracking.uri=http://127.0.0.1:9"), found)
    assert "http://127.0.0.1:9 does not answer" in found.warnings[0]
    assert "sync" in found.warnings[0] and not found.mistakes


def test_an_mlflow_server_that_answers_is_good(target, found):
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        check_mlflow(target(f"tracking.uri=http://127.0.0.1:{server.server_port}"), found)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert found.good and not found.warnings


def test_the_exit_code_is_2_only_with_a_mistake(found, capsys):
    found.warnings.append("something")
    assert found.show() == 0
    found.mistakes.append("something else")
    assert found.show() == 2
    assert capsys.readouterr().out.splitlines()[-1] == "mistake  something else"
