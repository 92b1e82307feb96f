"""The page: complete, self-contained, safe against names, and whole with pieces missing."""

import io
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.facts import (
    Evaluation,
    Registered,
    RunReport,
    Sample,
    StageRow,
    TransferReport,
    TransferTask,
)
from pipeline.report.page import write_report
from pipeline.report.samples import thumbnail

EVIL = '<script>alert("x")</script>&"\''
VOID = {"meta", "img"}


class Checker(HTMLParser):
    """Checks that elements close in order and notes what a browser would run or load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(path: Path) -> tuple[str, Checker]:
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert "script" not in checker.tags and "link" not in checker.tags
    assert all(load.startswith(("#", "data:image/")) for load in checker.loads)
    assert "@import" not in text and not re.search(r"url\((?!#plot\))", text)
    return text, checker


def picture(px: int = 300, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (px, px, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def full_run(name: str = "demo", num_classes: int = 3, text: str = "cat") -> RunReport:
    classes = [f"{text}{i}" for i in range(num_classes)]
    confusion = [
        [5 if i == j else int(j == i + 1) for j in range(num_classes)] for i in range(num_classes)
    ]
    samples = [
        Sample(i, 0, i % 2, 0.9, picture(32 if i == 1 else 300) if i < 4 else None)
        for i in range(6)
    ]
    steps = range(1, 1001)
    return RunReport(
        name=name,
        series={
            "train/loss": [(s, 2 / s) for s in steps],
            "train/lr": [(s, 1e-5 * s) for s in steps],
            "stage/px": [(s, 16 if s <= 500 else 32) for s in steps],
            "eval/top1": [(250, 0.5), (500, 0.9), (1000, 0.8)],
        },
        stages=[
            StageRow(0, 0, 500, 16, {"Mixup": "0"}), StageRow(1, 500, 1000, 32, {"Mixup": "0.1"})
        ],
        details={"Strategy": "ddp", "Ranks": "2", "Odd": text},
        seconds=200.4,
        num_attempts=2,
        evaluation=Evaluation(1000, 30, 0.8, 0.99, 0.5, classes, confusion, samples),
        registered=Registered("net", 3, "models:/net/3", "ab" * 32, ["models:/big/7"]),
        plan_text=f"stage 0: {text}",
    )  # fmt: skip


def test_a_page_shows_what_a_run_reached_and_how(tmp_path: Path) -> None:
    text, checker = check(write_report(tmp_path / "new" / "r.html", "A title", [full_run()]))
    for shown in (
        "80.00%", "90.00%", "best top-1, at step 500", "1,000", "in 2 stages", "3:20 min",
        "in 2 attempts", "ranks, ddp", "registered as net", "models:/big/7", "ab" * 32,
        "16 px", "32 px", "Commonest mistakes", "cat0 taken for cat1: 1 of 6",
    ):  # fmt: skip
        assert shown in text, shown
    assert checker.tags.count("svg") == 6  # four curves, the matrix, the clip path
    assert text.count("data:image/jpeg") == 3 and text.count("data:image/png") == 1
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert "default-src 'none'" in text


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    run = full_run(EVIL, 7, EVIL)
    task = TransferTask(EVIL, {EVIL: [0.5, 0.6]}, {EVIL: 0.7}, EVIL)
    transfer = TransferReport(EVIL, EVIL, [task])
    text, _ = check(write_report(tmp_path / "r.html", EVIL, [run, run], transfer))
    assert "<script" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize(
    "run",
    [
        RunReport("empty"),
        RunReport("one point", {"train/loss": [(1, 2.0)]}),
        RunReport("broken", {"train/loss": [(1, math.nan), (2, math.inf)], "eval/top1": []}),
        RunReport("flat", {"train/loss": [(s, 0.0) for s in range(9)], "train/lr": [(5, 0.0)]}),
        RunReport("scored", evaluation=Evaluation(10, 5, 0.2)),
        RunReport("perfect", evaluation=Evaluation(1, 2, 1.0, classes=["a"], confusion=[[2]])),
        RunReport("huge", {"train/loss": [(10**6, 1e30), (2 * 10**6, -1e-30)]}),
        RunReport("narrow", stages=[StageRow(i, i, i + 1, 8 * i) for i in range(90)],
                  series={"train/loss": [(s, s) for s in range(90)]}),
    ],
    ids=lambda run: run.name,
)  # fmt: skip
def test_missing_and_odd_pieces_leave_a_whole_page(run: RunReport, tmp_path: Path) -> None:
    text, _ = check(write_report(tmp_path / "r.html", "t", [run]))
    assert run.name in text and "nan" not in text.replace("finance", "") and "inf " not in text


def test_many_classes_give_a_table_instead_of_a_matrix(tmp_path: Path) -> None:
    few, _ = check(write_report(tmp_path / "a.html", "t", [full_run(num_classes=40)]))
    many, _ = check(write_report(tmp_path / "b.html", "t", [full_run(num_classes=300)]))
    assert "confusion matrix of 40 classes" in few
    assert "confusion matrix" not in many and "Commonest mistakes" in many
    assert len(many) < 200_000


def test_long_curves_stay_small_and_keep_their_extremes(tmp_path: Path) -> None:
    points = [(s, 50.0 if s == 77_777 else 1.0) for s in range(200_000)]
    run = RunReport("long", {"train/loss": points})
    text, _ = check(write_report(tmp_path / "r.html", "t", [run]))
    assert len(text) < 40_000 and ">50<" in text


def test_a_loss_that_begins_far_above_does_not_flatten_the_rest(tmp_path: Path) -> None:
    training = [(s, 2.0) for s in range(300)]
    run = RunReport(
        "r", {"train/loss": training, "eval/loss": [(30, 19.0), (150, 3.0), (299, 1.0)]}
    )
    text, _ = check(write_report(tmp_path / "r.html", "t", [run]))
    assert "held out (from 19)" in text and ">20<" not in text and ">3<" in text


def test_no_runs_and_a_transfer_alone_are_fine(tmp_path: Path) -> None:
    tasks = [
        TransferTask("digits", {"finetuned": [0.95, 0.97], "scratch": [0.7]}, {"paper": 0.987}),
        TransferTask("flowers", missing="no shards in data/flowers"),
    ]
    transfer = TransferReport("suite", "models:/net/1", tasks)
    text, checker = check(write_report(tmp_path / "r.html", "t", [], transfer))
    assert "96.0 \u00b1 1.4% (2 seeds)" in text and "paper 98.7%" in text
    assert "no shards in data/flowers" in text and checker.tags.count("svg") == 2


def test_thumbnails_are_small_copies_and_junk_is_none() -> None:
    big = thumbnail(picture(1500))
    assert big is not None and big[0] == "jpeg" and not big[2]
    with Image.open(io.BytesIO(big[1])) as image:
        assert max(image.size) <= 224
    tiny = thumbnail(picture(8, "PNG"))
    assert tiny is not None and tiny[0] == "png" and tiny[2]
    for junk in (b"", b"<svg onload=alert(1)>", picture()[:500]):
        assert thumbnail(junk) is None
