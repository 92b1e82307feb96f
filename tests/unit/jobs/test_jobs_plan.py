"""`pipeline plan` answers before there is anything to train on."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pipeline.__main__ import main
from tests.unit.data.faulty_server import Fault, serving

V2_S = "configs/v2_s_1k.yaml"


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


def test_a_cluster_is_priced_stage_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", V2_S, "--gpu", "h100", "--nodes", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 x 8 H100 SXM5, 400 Gbit/s a node: 16 ranks work" in out
    for px in (171, 214, 257, 300):
        assert re.search(rf"^ +\d +{px} +[\d,]+ +32 x 128 .* GiB ", out, re.M), px
    for word in ("GPU-hours", "shards  ", "loading  ", "checkpoints  ", "memory  ", "Rests on"):
        assert word in out, word


def test_twice_the_nodes_take_about_half_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    hours = []
    for nodes in ("1", "2"):
        assert main(["plan", V2_S, "--gpu", "A100", "--nodes", nodes]) == 0
        found = re.search(r"^time +([\d.]+) h,", capsys.readouterr().out, re.M)
        assert found
        hours.append(float(found[1]))
    assert 1.8 < hours[0] / hours[1] <= 2


def test_without_a_gpu_nothing_is_priced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", V2_S]) == 0
    assert "GPU-hours" not in capsys.readouterr().out


def test_overrides_may_stand_behind_options(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", V2_S, "batch.global_size=2048", "--gpu", "h100", "stages.micro_batches=16"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "global batch 2048" in out
    assert " 16 x 128 " in out


@pytest.mark.parametrize("word", ["nonsense", "--speed=8", "-x"])
def test_what_is_no_override_is_still_refused(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", V2_S, "--gpu", "h100", word])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_job_without_overrides_takes_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["register", "runs/x", "--late", "a=b"])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_measured_rate_replaces_the_published_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rates.yaml"
    rows.write_text("rates: [{gpu: h100, model: v2_s, px: 300, images_s: 2000, source: node 7}]")
    assert main(["plan", V2_S, "--gpu", "h100", "--rates", str(rows)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +3 +300 +2,000 ", out, re.M)
    assert "measured: 2,000 images/s of v2_s at 300 px (node 7)" in out
    assert "estimated" not in out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{gpu: tpu, model: v2_s, px: 300, images_s: 9, source: x}", ("rates.0.gpu", "h100")),
        ("{gpu: h100, model: v2_s, px: 300, images_s: 0, source: x}", ("rates.0.images_s",)),
        ("{gpu: h100, model: v2_s, px: 300, images_s: 9}", ("rates.0.source", "missing")),
        ("{gpu: h100, model: v9, px: 300, images_s: 9, source: x}", ("'v9'", "v2_s")),
    ],
)
def test_a_wrong_rate_is_named(
    row: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rates.yaml"
    rows.write_text(f"rates: [{row}]")
    assert main(["plan", V2_S, "--gpu", "h100", "--rates", str(rows)]) == 2
    error = capsys.readouterr().err
    for word in (str(rows), *words):
        assert word in error


def test_scaling_is_printed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "scaling.svg"
    words = ["plan", V2_S, "--gpu", "h100", "--scale", "1..512", "--plot", str(picture)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +512 +32 +480 ", out, re.M)
    assert "every stage: 1, 2, 4, 8, 16, 32; what is more stays idle" in out
    assert "it pays up to 32 cards" in out
    root = ET.parse(picture).getroot()
    svg = "{http://www.w3.org/2000/svg}"
    dots = root.findall(f".//{svg}circle")
    assert len(dots) == 3 * 10, "linear, as it is, cut: 1 to 512 cards"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for dot in dots:
        assert 0 < float(dot.attrib["cx"]) < width
        assert 0 < float(dot.attrib["cy"]) < height
    titles = "".join(title.text or "" for title in root.findall(f".//{svg}title"))
    assert re.search(r"the recipe as it is: 512 cards 3[01]\b", titles)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--nodes", "2"], ("--nodes needs --gpu", "h100")),
        (["--scale", "1..8"], ("--scale needs --gpu",)),
        (["--gpus-per-node", "4"], ("--gpus-per-node needs --gpu",)),
        (["--network-gbit", "100"], ("--network-gbit needs --gpu",)),
        (["--gpu", "tpu"], ("--gpu 'tpu'", "h100", "--rates")),
        (["--gpu", "h100", "--nodes", "0"], ("--nodes is 0",)),
        (["--gpu", "h100", "--gpus-per-node", "-1"], ("--gpus-per-node is -1",)),
        (["--gpu", "h100", "--network-gbit", "0"], ("--network-gbit is 0",)),
        (["--gpu", "h100", "--network-gbit", "nan"], ("--network-gbit is nan",)),
        (["--gpu", "h100", "--scale", "8"], ("--scale '8'", "1..512")),
        (["--gpu", "h100", "--plot", "x.svg"], ("--plot", "--scale")),
        (["--gpu", "h100", "--nodes", "2", "--scale", "1..8"], ("--nodes and --scale",)),
        (["--gpu", "h100", "--rates", "/nowhere.yaml"], ("/nowhere.yaml",)),
    ],
)
def test_hardware_that_makes_no_sense_is_refused(
    words: list[str], named: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", V2_S, *words]) == 2
    said = capsys.readouterr()
    for word in named:
        assert word in said.err
    assert said.out == "" or "--rates" in words, "before anything is printed"


def test_a_picture_that_cannot_be_written_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = ["--gpu", "h100", "--scale", "1..8", "--plot", str(tmp_path / "file" / "x.svg")]
    assert main(["plan", V2_S, *words]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_micro_batches_that_fit_are_measured_and_plan_again(
    low_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "configs/demo.yaml", f"data={low_digits}", "stages={kind: fixed, px: 16}"]
    assert main([*words, "--measure", "--ranks", "2", "--memory-gib", "16"]) == 0
    found = re.search(r'"0": \{micro_batches: (\d+)\}', capsys.readouterr().out)
    assert found
    assert int(found[1]) % 2 == 0
    assert main([*words, f"stages.0.micro_batches={found[1]}"]) == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--ranks", "2"], "--ranks and --memory-gib are of --measure"),
        (["--memory-gib", "2"], "--ranks and --memory-gib are of --measure"),
        (["--measure", "--ranks", "0"], "--ranks is 0"),
        (["--measure", "--memory-gib", "0"], "memory is 0 GiB"),
        (["--measure", "--memory-gib", "nan"], "memory is nan GiB"),
        (["--measure", "--memory-gib", "inf"], "memory is inf GiB"),
    ],
)
def test_measuring_that_makes_no_sense_is_refused(
    words: list[str], named: str, low_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "configs/demo.yaml", f"data={low_digits}", *words]) == 2
    assert named in capsys.readouterr().err


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
