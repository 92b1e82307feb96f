"""A work folder with a file that was cut or removed is written again, and named until it is."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import stages
from data_prep.build import build, run_stage
from data_prep.options import BuildSpec
from data_prep.sources import Source
from data_prep.stages import Job
from pipeline.spec import Misuse

MakeTree = Callable[..., Path]
Digests = Callable[[Path], dict[str, str]]

LISTED = [
    f"{table}.{suffix}"
    for table, suffixes in (
        ("catalogue", ("rows", "names", "refused", "folders", "json")),
        ("population", ("rows", "names", "json")),
    )
    for suffix in suffixes
]
ARRANGED = ["order-train.npy", "order-eval.npy", "several.npy", "dropped.jsonl", "arranged.json"]


@pytest.fixture
def job(tmp_path: Path, make_tree: MakeTree) -> Job:
    """Images of which one is a twin and one file is refused."""
    tree = make_tree({"cat": 4, "dog": 4})
    (tree / "dog/9.jpg").write_bytes((tree / "cat/0000.jpg").read_bytes())
    (tree / "dog/gone.jpg").symlink_to("nowhere")
    values = {"name": "test", "duplicates": "merge", "holdouts": {"eval": {"count": 1}}}
    return Job((Source(tree),), tmp_path / "out", BuildSpec.parse(values, "test"))


@pytest.fixture
def undisturbed(job: Job, tmp_path: Path, digests: Digests) -> dict[str, str]:
    build(Job(job.sources, tmp_path / "other", job.spec))
    return digests(tmp_path / "other")


def _run_until(job: Job, stage: str) -> None:
    """Run all stages before `stage`."""
    for each in ("list", "check", "arrange")[: ("check", "arrange", "write").index(stage) + 1]:
        run_stage(job, each)


def _damage(path: Path, cut: int | None) -> None:
    if cut is None:
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - cut)


@pytest.mark.parametrize("cut", [5, None])
@pytest.mark.parametrize("name", LISTED)
def test_what_was_listed_is_listed_again(
    name: str, cut: int | None, job: Job, undisturbed: dict[str, str], digests: Digests
) -> None:
    _run_until(job, "check")
    _damage(job.work / name, cut)
    if name != "catalogue.json":  # without it there is just no list
        with pytest.raises(Misuse, match=r"(catalogue|population).*run the same command again"):
            run_stage(job, "check")
    build(job)
    assert digests(job.out) == undisturbed


@pytest.mark.parametrize("cut", [5, None])
@pytest.mark.parametrize("name", ARRANGED)
def test_what_was_arranged_is_arranged_again(
    name: str, cut: int | None, job: Job, undisturbed: dict[str, str], digests: Digests
) -> None:
    _run_until(job, "write")
    _damage(job.work / name, cut)
    with pytest.raises(Misuse, match=rf"({name}|arranged yet).*run .*stage arrange"):
        run_stage(job, "write")
    build(job)
    assert digests(job.out) == undisturbed


@pytest.mark.parametrize("cut", [5, 5000, None])
def test_what_was_checked_is_gathered_again(
    cut: int | None, job: Job, undisturbed: dict[str, str], digests: Digests
) -> None:
    _run_until(job, "write")
    path = job.work / "verdicts.npy"
    _damage(path, cut and min(cut, path.stat().st_size))
    build(job)
    assert digests(job.out) == undisturbed


def test_nothing_is_listed_again_where_nothing_is_damaged(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_until(job, "check")
    monkeypatch.setattr(stages, "write_catalogue", lambda *_: 1 / 0)
    with contextlib.suppress(Misuse):
        build(job)
    assert (job.out / "manifest.json").exists()
