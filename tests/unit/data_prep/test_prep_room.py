"""Too little room on the disks: refused before the work where that is sure, else said."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

import data_prep.room as room
from data_prep.build import build, dry_run
from data_prep.failure import Failed
from data_prep.options import BuildSpec
from data_prep.sources import Source
from data_prep.stages import Job
from data_prep.tar import Damaged

MakeTar = Callable[[Path, Mapping[str, bytes]], Path]
Encode = Callable[..., bytes]
SetFree = Callable[[int], None]

NUM_IMAGES = 20


@pytest.fixture
def images(encode: Encode) -> dict[str, bytes]:
    """JPEGs of 40 px, 100 kB together."""
    return {
        f"{'cat' if number % 2 else 'dog'}/{number:02d}.jpg": encode(number, "JPEG", 80, 60)
        for number in range(NUM_IMAGES)
    }


@pytest.fixture
def num_bytes(images: dict[str, bytes]) -> int:
    """The size of the tar that holds them: what is inside the gzip."""
    in_tar = sum(512 + -(-len(data) // 512) * 512 for data in images.values())
    return -(-(in_tar + 1024) // 10_240) * 10_240


@pytest.fixture
def zipped(tmp_path: Path, make_tar: MakeTar, images: dict[str, bytes]) -> Path:
    return make_tar(tmp_path / "raw.tar.gz", images)


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> SetFree:
    def make(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    return make


def _job(
    source: Path, scratch: Path | None = None, options: Mapping[str, object] | None = None
) -> Job:
    spec = BuildSpec.parse({"name": "test", **(options or {})}, "test")
    return Job((Source(source),), source.parent / "out", spec, scratch=scratch)


def test_spools_and_shards_on_one_disk_are_counted_together(
    zipped: Path, num_bytes: int, set_free: SetFree
) -> None:
    set_free(num_bytes + num_bytes // 2)
    job = _job(zipped)
    message = (
        rf"out: about {2 * num_bytes / 1e9:.3f} GB more are needed there, .* are free; make room"
        rf".* \({num_bytes / 1e9:.3f} GB for what is inside the gzips, {num_bytes / 1e9:.3f} GB "
        r"for the shards\)"
    )
    for run in (build, dry_run):
        with pytest.raises(Failed, match=message):
            run(job)
    assert not (job.work / room.SPOOLS).exists(), "nothing was inflated"
    set_free(2 * num_bytes + 20_000)
    assert build(job).split("train").num_samples == NUM_IMAGES


def test_on_two_disks_each_is_asked_for_its_own(
    tmp_path: Path,
    zipped: Path,
    num_bytes: int,
    set_free: SetFree,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scratch = tmp_path / "scratch"
    monkeypatch.setattr(room, "_device", lambda folder: folder.is_relative_to(scratch))
    set_free(num_bytes - 5000)
    job = _job(zipped, scratch)
    with pytest.raises(Failed, match=r"out-\w+: about .*free;.* GB for what is inside the gzips\)"):
        build(job)
    assert not (job.work / room.SPOOLS).exists()
    set_free(num_bytes + num_bytes // 2)
    assert build(job).split("train").num_samples == NUM_IMAGES


def _spool_only(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build until the spools are there."""
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.sources.without_doubles", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(job)


def test_what_is_spooled_already_is_not_asked_for_again(
    zipped: Path, num_bytes: int, set_free: SetFree, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(zipped)
    _spool_only(job, monkeypatch)
    set_free(num_bytes + 20_000)
    assert build(job).split("train").num_samples == NUM_IMAGES


@pytest.mark.parametrize(
    "options",
    [
        {"transcode": {"kind": "resize", "short_px": 8}},
        {"per_class": 2},
        {"classes": ["cat"]},
        {"splits": {"cat": "train", "dog": "eval"}},
    ],
    ids=["resize", "per class", "classes", "splits"],
)
def test_an_upper_bound_is_said_and_only_what_is_sure_is_refused(
    options: dict[str, object],
    zipped: Path,
    num_bytes: int,
    set_free: SetFree,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = _job(zipped, options=options)
    set_free(num_bytes - 5000)
    with pytest.raises(Failed, match=r"out: about .* \(\d\.\d+ GB for what is inside the gzips\)"):
        dry_run(job)
    assert "up to" not in capsys.readouterr().err
    set_free(num_bytes + 5000)
    dry_run(job)
    said = capsys.readouterr().err
    assert f"{job.out}: up to 0.000" in said and "GB for the shards" in said
    set_free(3 * num_bytes)
    dry_run(job)
    assert "up to" not in capsys.readouterr().err


def test_gzips_in_a_folder_are_asked_for_as_well(
    tmp_path: Path,
    zipped: Path,
    num_bytes: int,
    encode: Encode,
    set_free: SetFree,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(2):
        shutil.copy(zipped, raw / f"{number}.tgz")
    (raw / "photo.jpg").write_bytes(encode(1))
    set_free(2 * num_bytes - 5000)
    with pytest.raises(Failed, match=r"for what is inside the gzips"):
        dry_run(_job(raw))
    set_free(3 * num_bytes)
    dry_run(_job(raw))
    assert "up to" in capsys.readouterr().err, "a folder may hold more than the images"


def test_a_gzip_that_is_broken_at_once_is_named(zipped: Path) -> None:
    zipped.write_bytes(zipped.read_bytes()[:3000])
    with pytest.raises(Damaged, match=r"raw\.tar\.gz: truncated or damaged gzip"):
        dry_run(_job(zipped))


def test_what_an_interrupted_pass_left_counts_as_free(
    zipped: Path, num_bytes: int, set_free: SetFree, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(zipped)
    _spool_only(job, monkeypatch)
    (target,) = (job.work / room.SPOOLS).iterdir()
    (target / "members.json").unlink()
    there = (target / "bucket-000").stat().st_size
    set_free(2 * num_bytes - there + 100)
    dry_run(job)
    set_free(2 * num_bytes - there - 10_000)
    with pytest.raises(Failed, match="for what is inside the gzips"):
        dry_run(job)
