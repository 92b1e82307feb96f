"""The plain webdataset stream: same batches, fewer promises, and hostile tars do nothing."""

import io
import pickle
import tarfile
from itertools import islice
from pathlib import Path

import pytest
import torch

from pipeline.data.augment import AugmentSpec
from pipeline.data.bad import BadSpec
from pipeline.data.labels import LabelSpace
from pipeline.data.loading import LoaderSpec
from pipeline.data.reader import BrokenSample
from pipeline.data.stream import StreamLoader, find_tars, key_id, read_tar
from pipeline.spec import Misuse

BUDGET = BadSpec(policy="budget")
SPACE = LabelSpace(name="test", classes=tuple(f"c{i}" for i in range(10)))


@pytest.fixture
def tars(tmp_path, make_tar, make_jpeg) -> list[Path]:
    """Four tars of 12 samples; the class of sample n is n % 10."""
    paths = []
    for number in range(4):
        samples = [
            {"key": b"k%03d" % n, "jpg": make_jpeg(n), "cls": b"%d" % (n % 10)}
            for n in range(number * 12, number * 12 + 12)
        ]
        paths.append(tmp_path / f"part-{number}.tar")
        make_tar(paths[-1], samples)
    return paths


@pytest.fixture
def stream(fake):
    loaders = []

    def make(shards, rank=0, world=1, workers=0, seed=0, plan=None, bad=None):
        plan = plan or fake.plan(stages=((0, fake.settings(micro_batches=4)),))
        spec = LoaderSpec(workers=workers, timeout_s=60, bad=bad or BadSpec())
        loaders.append(
            StreamLoader(shards, SPACE, plan, 24, rank, world, AugmentSpec(), seed, spec, 6)
        )
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def one_sample(make_tar, path: Path, **members: bytes) -> Path:
    make_tar(path, [{"key": b"k", **members}])
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_yields_the_same_kind_of_batches_as_the_training_loader(tars, stream, workers):
    steps = list(islice(stream(tars, workers=workers).steps(7), 2))
    assert [[(b.step, b.index) for b in step] for step in steps] == [
        [(7, 0), (7, 1), (7, 2), (7, 3)],
        [(8, 0), (8, 1), (8, 2), (8, 3)],
    ]
    known = {key_id(f"k{n:03d}"): n for n in range(48)}
    for batch in sum(steps, []):
        assert batch.images.shape == (6, 16, 16, 3) and batch.images.dtype == torch.uint8
        assert batch.labels[:, 0].tolist() == [known[i] % 10 for i in batch.ids.tolist()]


def test_it_never_ends_and_shows_everything_about_equally_often(tars, stream):
    ids = [i for step in islice(stream(tars).steps(0), 20) for b in step for i in b.ids.tolist()]
    counts = [ids.count(key_id(f"k{n:03d}")) for n in range(48)]
    assert sum(counts) == 480 and min(counts) >= 8 and max(counts) <= 12


def test_ranks_and_workers_read_different_shards(tars, stream):
    for world, workers in ((2, 0), (4, 1), (2, 2)):
        seen = [
            {
                i
                for step in islice(stream(tars, rank, world, workers).steps(0), 8)
                for b in step
                for i in b.ids.tolist()
            }
            for rank in range(world)
        ]
        assert all(not a & b for n, a in enumerate(seen) for b in seen[n + 1 :])
        assert len(set().union(*seen)) > 40


def test_batches_depend_on_seed_and_first_step_alone(tars, stream):
    def ids(first_step: int, seed: int) -> list[int]:
        (step,) = islice(stream(tars, seed=seed).steps(first_step), 1)
        return [i for batch in step for i in batch.ids.tolist()]

    assert ids(0, 0) == ids(0, 0)
    assert ids(0, 0) != ids(0, 1) and ids(0, 0) != ids(5, 0)


def test_a_new_stage_changes_the_size(tars, stream, fake):
    stages = ((0, fake.settings(px=8)), (1, fake.settings(px=20, micro_batches=2)))
    loader = stream(tars, plan=fake.plan(total_steps=2, stages=stages))
    shapes = [tuple(step[0].images.shape) for step in loader.steps(0)]
    assert shapes == [(6, 8, 8, 3), (12, 20, 20, 3)]


@pytest.mark.parametrize(
    ("members", "labels"),
    [
        ({"json": b'["c3", "c7"]', "cls": b"3"}, (3, 7)),
        ({"json": b'{"labels": [3, 7], "classes": ["c3", "c7"]}', "cls": b"3"}, (3, 7)),
        ({"json": b'{"label": 4}'}, (4,)),
        ({"json": b'{"width": 5}', "cls": b"3"}, (3,)),
        ({"cls": b" 9\n"}, (9,)),
        ({"cls": b"c2"}, (2,)),
    ],
)
def test_labels_are_names_or_indices_in_json_or_cls(tmp_path, make_tar, members, labels):
    tar = one_sample(make_tar, tmp_path / "a.tar", jpg=b"x", **members)
    assert [sample.labels for sample in read_tar(tar, SPACE)] == [labels]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"jpg": b"x"}, "has only jpg"),
        ({"cls": b"1"}, "has only cls"),
        ({"jpg": b"x", "cls": b"ten"}, "no class 'ten'"),
        ({"jpg": b"x", "cls": b"10"}, "class 10, but there are 10"),
        ({"jpg": b"x", "cls": b"-1"}, "class -1"),
        ({"jpg": b"x", "cls": b"\xff"}, "no label"),
        ({"jpg": b"x", "json": b'["c99"]'}, "no class 'c99'"),
        ({"jpg": b"x", "json": b"[1.5, null]"}, "no label"),
        ({"jpg": b"x", "json": b"[" * 100_000}, "no label"),
        ({"jpg": b"x", "json": b'{"a": 1}'}, "no label"),
    ],
)
def test_an_incomplete_sample_is_named(tmp_path, make_tar, members, words):
    tar = one_sample(make_tar, tmp_path / "a.tar", **members)
    with pytest.raises(BrokenSample) as error:
        list(read_tar(tar, SPACE))
    assert f"{tar}: sample 'k':" in str(error.value) and words in str(error.value)


def test_a_key_that_is_no_text_can_still_be_printed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("k\udcff.jpg"))
    with pytest.raises(BrokenSample, match=r"a\.tar: sample 'k\\udcff': has only jpg") as error:
        list(read_tar(tmp_path / "a.tar", SPACE))
    assert str(error.value).encode()


def test_interleaved_members_are_refused_instead_of_halved(tmp_path, make_tar, make_jpeg):
    samples = [{"key": key, "jpg": make_jpeg(0)} for key in (b"a", b"b")]
    make_tar(tmp_path / "a.tar", [*samples, {"key": b"a", "cls": b"1"}])
    with pytest.raises(BrokenSample, match="next to each other"):
        list(read_tar(tmp_path / "a.tar", SPACE))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(tmp_path, make_tar, make_jpeg, stream, workers):
    tar = one_sample(make_tar, tmp_path / "a.tar", jpg=make_jpeg(0)[:300], cls=b"1")
    with pytest.raises(BrokenSample, match=r"a.tar: sample 'k': not a whole image"):
        next(iter(stream([tar], workers=workers).steps(0)))


@pytest.mark.parametrize("workers", [0, 1])
def test_within_the_budget_the_next_sample_stands_in_for_a_broken_image(
    tmp_path, make_tar, make_jpeg, stream, workers
):
    images = [make_jpeg(n)[: 300 if n in (1, 2) else None] for n in range(6)]
    samples = [{"key": b"%d" % n, "jpg": images[n], "cls": b"%d" % n} for n in range(6)]
    make_tar(tmp_path / "a.tar", samples)
    (step,) = islice(stream([tmp_path / "a.tar"], workers=workers, bad=BUDGET).steps(0), 1)
    ids = [i for batch in step for i in batch.ids.tolist()]
    replaced = [item for batch in step for item in batch.replaced]
    bad = {key_id("1"), key_id("2")}
    assert len(ids) == 24 and not bad & set(ids)
    assert replaced and {item.sample_id for item in replaced} == bad
    good = {f"'{n}' of {tmp_path}/a.tar" for n in (0, 3, 4, 5)}
    assert {item.by for item in replaced} <= good
    assert all("a.tar: sample '" in item.reason for item in replaced)


def test_where_every_image_is_broken_the_budget_ends(tmp_path, make_tar, make_jpeg, stream):
    tar = one_sample(make_tar, tmp_path / "a.tar", jpg=make_jpeg(0)[:300], cls=b"1")
    with pytest.raises(BrokenSample, match=r"a.tar: sample 'k'"):
        next(iter(stream([tar], bad=BUDGET).steps(0)))


def test_a_broken_tar_is_an_error_within_any_budget(tmp_path, make_tar, make_jpeg, stream):
    tar = one_sample(make_tar, tmp_path / "a.tar", jpg=make_jpeg(0))
    with pytest.raises(BrokenSample, match="has only jpg"):
        next(iter(stream([tar], bad=BUDGET).steps(0)))


def test_a_truncated_tar_is_an_error_and_not_a_short_one(tars):
    raw = tars[0].read_bytes()
    for cut in (700, len(raw) // 2, 3 * 1536, len(raw) - 10240):
        tars[0].write_bytes(raw[:cut])
        with pytest.raises(BrokenSample, match=f"{tars[0].name}: .*not a whole tar"):
            list(read_tar(tars[0], SPACE))


@pytest.mark.parametrize("content", [b"<html>not found</html>" * 100, b"\0" * 4096, b""])
def test_a_file_that_is_no_tar_never_hangs_the_stream(tmp_path, stream, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(BrokenSample, match="a.tar"):
        next(iter(stream([tmp_path / "a.tar"]).steps(0)))


@pytest.mark.parametrize(
    "shard", ["pipe:touch {mark}", "http://localhost:1/a.tar", "-", "file://{mark}", "{mark}"]
)
def test_only_local_files_are_opened_and_no_command_runs(tmp_path, stream, shard):
    mark = tmp_path / "mark"
    with pytest.raises(Misuse, match="shard '"):
        stream([shard.format(mark=mark)])
    assert not mark.exists()


def test_an_evil_tar_runs_nothing_and_writes_nothing(tmp_path, make_jpeg, stream, monkeypatch):
    """Members that webdataset's own decoder would unpickle, links, and paths that lead out."""

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "mark",))

    monkeypatch.chdir(tmp_path)
    inside = {p.name for p in tmp_path.iterdir()}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:

        def add(name: str, data: bytes, **fields) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))

        add("k.jpg", make_jpeg(1))
        add("k.cls", b"1")
        for suffix in ("pyd", "pkl", "pickle", "pth", "npy", "ten", "mp", "cls.pyd"):
            add(f"k.{suffix}", pickle.dumps(Evil()))
        add("link.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.cls", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        add("../out.jpg", make_jpeg(2))
        add("../out.cls", b"2")
    samples = list(read_tar(tmp_path / "a.tar", SPACE))
    assert [(s.key, s.labels) for s in samples] == [("k", (1,)), ("../out", (2,))]
    (step,) = islice(stream([tmp_path / "a.tar"]).steps(0), 1)
    assert len(step) == 4
    assert {p.name for p in tmp_path.iterdir()} == inside | {"a.tar"}
    assert not (tmp_path.parent / "out.jpg").exists()


def test_too_few_shards_are_refused(tars, stream):
    with pytest.raises(Misuse, match="data.stream names 4 shards for 4 ranks with 2 workers"):
        stream(tars, world=4, workers=2)


def test_a_pattern_names_tars_in_order_and_one_that_fits_none_is_refused(tars, tmp_path):
    assert find_tars(f"{tmp_path}/part-[12]*") == tars[1:3]
    with pytest.raises(Misuse, match=r"data\.stream is '.*/nowhere/\*\.tar': 0 shards fit"):
        find_tars(f"{tmp_path}/nowhere/*.tar")


def test_webdataset_is_in_its_secure_mode():
    from webdataset import utils

    assert utils.enforce_security  # pyright: ignore[reportAttributeAccessIssue]
