"""What reaches sbatch: names, times and values that cannot carry a command."""

import pytest

from launch.requests import Request, check_name, minutes, request_of, site_settings
from pipeline.spec import Misuse

HOSTILE = [";touch x", "$(touch x)", "`touch x`", "a b", "a\nb", "-p gpu", "", "a'b", 'a"b', "x>y"]


@pytest.mark.parametrize("name", [*HOSTILE, "../up", "x" * 65])
def test_a_name_that_could_be_a_command_is_refused(name):
    with pytest.raises(Misuse, match="use 1 to 64 letters"):
        check_name(name, "the name")


def test_ordinary_names_pass():
    assert check_name("v2_l_21k.ft-1", "the name") == "v2_l_21k.ft-1"


@pytest.mark.parametrize("field", ["partition", "account", "qos", "constraint", "exclude", "time"])
@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_that_could_be_a_command_is_refused(field, value):
    with pytest.raises(Misuse, match=f"chain: field '{field}'"):
        Request.parse({field: value}, "chain")


@pytest.mark.parametrize(
    "values",
    [{"partition": "gpu,gpu-long"}, {"constraint": "a100&nvlink"}, {"nodelist": "gpu[1-4,7]"},
     {"time": "2-00:00:00"}, {"time": "90"}, {"mem": "480G"}],
)  # fmt: skip
def test_what_sbatch_takes_passes(values):
    assert Request.parse(values, "chain").values() == values


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 90), ("90:30", 91), ("4:00:00", 240), ("2-00:00:00", 2880), ("1-12", 2160),
     ("0:30", 1), ("1-0:30", 1470)],
)  # fmt: skip
def test_times_are_read_as_sbatch_reads_them(time, expected):
    assert minutes(time) == expected


def test_a_script_is_read_whatever_the_number_of_options_on_a_line(tmp_path):
    script = tmp_path / "a.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --job-name=a --nodes=4 --ntasks-per-node=8\n# SBATCH --nodes=9\n"
        "#SBATCH --time=1-00:00:00\n#SBATCH --requeue\necho '#SBATCH --nodes=7'\n"
    )
    request = request_of(script)
    assert request.values() == {"nodes": 4, "ntasks_per_node": 8, "time": "1-00:00:00"}
    assert request.ranks == 32


def test_what_is_said_nearer_wins():
    base = Request(nodes=4, partition="gpu")
    assert Request(nodes=1).over(base).values() == {"nodes": 1, "partition": "gpu"}


def test_the_sites_settings_reach_submission_and_the_environment_wins(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.requests.ROOT", tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "site.env").write_text(
        ': "${SBATCH_ACCOUNT:=team}"\n: "${SBATCH_QOS:=normal}"\n: "${RANK_PYTHON:=python3}"\n'
    )
    settings = site_settings({"PATH": "/usr/bin:/bin", "SBATCH_QOS": "high"})
    assert settings == {"SBATCH_ACCOUNT": "team", "SBATCH_QOS": "high"}


def test_a_mistake_in_the_sites_settings_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.requests.ROOT", tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "site.env").write_text("SBATCH_ACCOUNT = team\n")
    with pytest.raises(Misuse, match=r"site\.env: .*SBATCH_ACCOUNT"):
        site_settings({"PATH": "/usr/bin:/bin"})
