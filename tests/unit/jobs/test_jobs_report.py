"""`pipeline report`: one page about runs, whatever of them is there."""

import shutil
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.run.files import write_json
from pipeline.run.folder import RunFolder


def page_of(arguments: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["report", *arguments, "--output", str(output)]) == 0
    assert f"report: {output}" in capsys.readouterr().out
    return output.read_text()


def test_a_page_shows_curves_scores_and_pictures_and_needs_no_other_file(
    finished: RunFolder, low_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(finished.path), "--title", "Six & digits"]
    page = page_of(arguments, tmp_path / "report.html", capsys)
    assert "Six &amp; digits" in page
    assert "finished" in page
    assert "<svg" in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert "<script src" not in page


def test_without_its_shards_a_run_is_told_without_pictures(
    a_finished_run: RunFolder, low_digits: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = a_finished_run
    run.recipe.write_text(run.recipe.read_text().replace(str(low_digits), f"{tmp_path}/gone"))
    page = page_of([str(run.path)], tmp_path / "report.html", capsys)
    assert "<svg" in page
    assert "data:image/" not in page


def test_a_run_that_still_goes_on_has_a_page(
    a_finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(a_finished_run.package)
    a_finished_run.evaluation.unlink()
    assert "<svg" in page_of([str(a_finished_run.path)], tmp_path / "report.html", capsys)


def test_the_result_of_a_suite_is_told_with_what_was_missing(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [
        {"task": "four", "published": {"paper": 98.7}, "top1": {"finetuned": [0.75, 0.85]}},
        {"task": "absent", "missing": "no shards in /data/absent"},
    ]
    path = tmp_path / "transfer.json"
    write_json(path, {"suite": "s", "model": "models:/low/1", "tasks": tasks})
    arguments = [str(finished.path), "--transfer", str(path)]
    page = page_of(arguments, tmp_path / "report.html", capsys)
    for words in ("models:/low/1", "four", "80.0", "98.7", "no shards in /data/absent"):
        assert words in page


def test_what_is_no_run_or_no_suite_is_named_and_no_page_is_written(
    finished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "--output", str(output)]) == 2
    assert f"{tmp_path}: not a run folder" in capsys.readouterr().err
    (tmp_path / "suite.json").write_text("[]")
    words = ["--transfer", f"{tmp_path}/suite.json", "--output", str(output)]
    assert main(["report", str(finished.path), *words]) == 2
    assert f"{tmp_path}/suite.json: is no transfer.json" in capsys.readouterr().err
    assert not output.exists()
