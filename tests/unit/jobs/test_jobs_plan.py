"""`pipeline plan` answers before there is anything to train on."""

from pathlib import Path

import pytest

from pipeline.__main__ import main
from tests.unit.data.faulty_server import Fault, serving


@pytest.fixture(autouse=True)
def in_repo(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)


def test_without_shards_the_announced_counts_are_planned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = "data={path: /nowhere, name: big, num_train: 50000, num_classes: 100}"
    words = [data, "length={epochs: 11}", "batch.global_size=128", "stages.px=[20,32]"]
    assert main(["plan", "configs/demo.yaml", *words]) == 0
    out = capsys.readouterr().out.replace(",", "")
    assert str(11 * 50_000 // 128) in out
    assert "data big global batch 128" in out
    for px in ("20", "24", "28", "32"):
        assert f" {px} " in out


def test_shards_that_are_there_win_over_what_was_announced(
    low_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data={{path: '{low_digits}', num_train: 5000, num_classes: 99}}"]
    assert main(["plan", "configs/demo.yaml", *words]) == 0
    out = capsys.readouterr().out
    assert str(20 * 72 // 64) in out
    assert str(20 * 5000 // 64) not in out


def test_neither_shards_nor_a_count_is_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "configs/demo.yaml", f"data={tmp_path}/none"]) == 2
    error = capsys.readouterr().err
    assert f"'data.path' is '{tmp_path}/none'" in error
    assert "data_prep build" in error
    assert "data.num_train" in error


def test_a_shard_folder_with_a_broken_manifest_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text("{")
    assert main(["plan", "configs/demo.yaml", f"data={tmp_path}"]) == 2
    assert f"{tmp_path}/manifest.json: cannot be read" in capsys.readouterr().err


def test_the_plan_of_a_url_is_that_of_its_folder(
    low_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(low_digits) as server:
        plans = []
        for path in (str(low_digits), server.url):
            data = f"data={{path: '{path}', name: low, num_train: 5000, num_classes: 99}}"
            cache = f"data.shards.folder={tmp_path}/node/cache"
            assert main(["plan", "configs/demo.yaml", data, cache]) == 0
            plans.append(capsys.readouterr().out)
    assert plans[0] == plans[1]
    assert str(20 * 72 // 64) in plans[1]
    assert list(tmp_path.iterdir()) == [], "the node's disk may be elsewhere"


@pytest.mark.parametrize(("status", "code"), [(404, 2), (403, 1), (503, 1)])
def test_a_url_without_its_manifest_is_planned_as_announced_or_names_itself(
    low_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, code: int
) -> None:
    with serving(low_digits) as server:
        server.always("manifest.json", Fault(status=status))
        words = [f"data={server.url}", f"data.shards.folder={tmp_path}", "data.shards.retries=0"]
        assert main(["plan", "configs/demo.yaml", *words, "data.num_train=5000"]) == 0
        said = capsys.readouterr()
        assert str(20 * 5000 // 64) in said.out.replace(",", "")
        assert "note: " in said.err and f"the server answers {status}" in said.err
        assert main(["plan", "configs/demo.yaml", *words]) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ") and f"{server.url}/manifest.json" in error


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("http://127.0.0.1:9", "data.shards.folder"),
        ("ftp://127.0.0.1/shards", "URLs of shards begin with one of http"),
    ],
)
def test_a_url_that_cannot_be_used_is_wrong_use(
    capsys: pytest.CaptureFixture[str], data: str, told: str
) -> None:
    assert main(["plan", "configs/demo.yaml", f"data={data}"]) == 2
    assert told in capsys.readouterr().err
