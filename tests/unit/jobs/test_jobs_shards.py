"""Missing and short shards are found before training, all at once."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from pipeline.data.manifest import Manifest, load_manifest
from pipeline.jobs.shards import check_shards
from pipeline.recipe import Recipe, load_recipe
from pipeline.run.folder import RunFolder, Status
from pipeline.spec import Failure, Misuse

BUDGET = "loader.bad.policy=budget"


@pytest.fixture
def data(low_digits: Path, tmp_path: Path) -> Path:
    """A copy of the shards that a test may damage."""
    return shutil.copytree(low_digits, tmp_path / "data")


@pytest.fixture
def look(repo: Path, data: Path):
    """Check the shards under some overrides; returns what was told."""

    def check(*overrides: str) -> list[str]:
        told: list[str] = []
        check_shards(
            read_recipe(repo, f"data={data}", *overrides), load_manifest(data), told.append
        )
        return told

    return check


def read_recipe(repo: Path, *overrides: str) -> Recipe:
    return load_recipe(repo / "configs" / "demo.yaml", overrides)


def tar(data: Path, split: str) -> Path:
    (path,) = (data / split).glob("*.tar")
    return path


def many(manifest: Manifest, number: int) -> Manifest:
    """Return a manifest whose train split has `number` shards, none of which is there."""
    train = manifest.split("train")
    shards = [
        train.shards[0].model_copy(update={"file": f"train/shard-{n:06d}.tar"})
        for n in range(100, 100 + number)
    ]
    split = train.model_copy(update={"shards": tuple(shards)})
    return manifest.model_copy(update={"splits": {**manifest.splits, "train": split}})


def test_whole_shards_are_fine_under_both_policies(look) -> None:
    assert look() == look(BUDGET) == []


@pytest.mark.parametrize("change", [-1, 512])
def test_a_shard_of_another_size_is_named_with_both(look, data: Path, change: int) -> None:
    path = tar(data, "train")
    size = path.stat().st_size
    os.truncate(path, size + change)
    told = (
        rf"{data}: .*{path.name} has {size + change:,} bytes instead of {size:,}; .*verify {data}"
    )
    with pytest.raises(Misuse, match=told):
        look()


def test_missing_shards_of_both_splits_are_named_at_once(look, data: Path) -> None:
    for split in ("train", "eval"):
        tar(data, split).unlink()
    with pytest.raises(Misuse, match=r"train/shard-\d+.tar is missing, eval/shard-\d+.tar is miss"):
        look()


@pytest.mark.parametrize(("number", "rest"), [(5, "104.tar is missing;"), (8, "and 3 more;")])
def test_of_many_wrong_shards_the_first_five_are_named(
    repo: Path, data: Path, number: int, rest: str
) -> None:
    manifest = many(load_manifest(data), number)
    with pytest.raises(Misuse, match=rest) as error:
        check_shards(read_recipe(repo, f"data={data}"), manifest)
    assert str(error.value).count("is missing") == 5


def test_shards_to_train_on_are_only_told_where_their_samples_are_replaced(
    look, data: Path
) -> None:
    tar(data, "train").unlink()
    (told,) = look(BUDGET)
    assert f"{data}: " in told and "train/shard-000000.tar is missing" in told
    assert "replaced" in told


def test_evaluation_needs_all_its_shards_under_any_policy(look, data: Path) -> None:
    tar(data, "eval").unlink()
    with pytest.raises(Misuse, match=r"eval/shard-000000.tar is missing"):
        look(BUDGET)


@pytest.mark.parametrize("policy", [BUDGET, "loader.bad.policy=strict"])
@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("kind", ["idx", "lab"])
def test_a_missing_index_is_found_before_training(
    look, data: Path, split: str, kind: str, policy: str
) -> None:
    (data / split / f"shard-000000.{kind}.npy").unlink()
    with pytest.raises(Misuse, match=rf"{split}/shard-000000.{kind}.npy is missing; .*verify"):
        look(policy)


@pytest.mark.parametrize("damage", ["cut", "flipped", "a folder"])
@pytest.mark.parametrize("kind", ["idx", "lab"])
def test_an_index_to_evaluate_with_is_read_before_training(
    look, data: Path, kind: str, damage: str
) -> None:
    path = data / "eval" / f"shard-000000.{kind}.npy"
    raw = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    else:
        path.write_bytes(raw[:-3] if damage == "cut" else raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(Misuse, match=rf"{path}: .*verify"):
        look()


def test_only_the_splits_in_use_are_looked_at(look, data: Path) -> None:
    tar(data, "train").unlink()
    assert look("data.stream=/tars/*.tar", "data.num_train=72") == []
    assert look("data.train=eval") == []


def test_shards_that_are_brought_are_checked_on_their_way(look, repo: Path, data: Path) -> None:
    tar(data, "train").unlink()
    assert look("data.shards.kind=stage", "data.shards.folder=/scratch") == []
    check_shards(read_recipe(repo, "data=http://127.0.0.1:9/digits"), load_manifest(data))


def test_a_disk_that_does_not_answer_is_no_missing_shard(
    look, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stat = tar(data, "train"), Path.stat

    def fails(self: Path, **options: bool) -> os.stat_result:
        if self == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", fails)
        with pytest.raises(Failure, match=r"shard-000000.tar: cannot be read .*file server fails"):
            look()


def test_a_training_without_all_its_shards_does_not_start(
    small_train, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PIPELINE_ATTEMPT", "0")
    path = tar(data, "eval")
    os.truncate(path, path.stat().st_size - 1)
    assert small_train(data, "name=short") == 2
    assert f"eval/{path.name} has" in capsys.readouterr().err
    folder = RunFolder(tmp_path / "runs" / "short")
    outcome = folder.read_outcome(0)
    assert outcome is not None and outcome.status is Status.MISUSE
    assert not folder.checkpoints.exists()


def test_a_training_with_a_budget_says_what_is_missing_and_goes_on(
    small_train, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tar(data, "train")
    os.truncate(path, path.stat().st_size - 20_000)
    policy = "loader.bad={policy: budget, budget: 0.9}"
    assert small_train(data, "name=short", policy) == 0
    assert f"train/{path.name} has" in capsys.readouterr().out


@pytest.mark.parametrize(("rank", "refused"), [("0", True), ("1", False)])
def test_rank_0_alone_asks_the_disk(
    repo: Path, data: Path, monkeypatch: pytest.MonkeyPatch, rank: str, refused: bool
) -> None:
    from pipeline.jobs.prepare import make_data_ready, prepare

    for name, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, value)
    tar(data, "train").unlink()
    prepared = prepare(read_recipe(repo, f"data={data}", "tracking.enabled=false"))
    if not refused:
        make_data_ready(prepared)
        return
    with pytest.raises(Misuse, match="is missing"):
        make_data_ready(prepared)
