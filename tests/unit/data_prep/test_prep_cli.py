"""The commands as people type them: exit codes, messages, progress, a quick --help."""

import io
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from data_prep import build_command
from data_prep.__main__ import _parser, main
from data_prep.clean import CleanRules
from data_prep.transcode import TranscodeSpec
from pipeline.data.manifest import load_manifest

MakeTree = Callable[..., Path]
MakeTar = Callable[[Path, Mapping[str, bytes]], Path]
Encode = Callable[..., bytes]


def _run(*words: object) -> int:
    return main([str(word) for word in words])


def test_build_verify_show(
    tmp_path: Path, make_tree: MakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, out = make_tree({"cat": 5, "dog": 5, "fox": 5}), tmp_path / "pets"
    (tree / "cat/notes.txt").write_text("no image")
    command = ["build", tree, out, "--holdout", "0.2", "--workers", "1", "--classes", "cat,fox"]
    assert _run(*command) == 0
    captured = capsys.readouterr()
    assert "check: 11 of 11 images (100 %)" in captured.err
    assert "classes    2: cat, fox" in captured.out
    assert "rejected: 1 (1 not an image)" in captured.out
    assert "cat/notes.txt: " in captured.out
    assert _run("verify", out, "--workers", "1", "--decode") == 0
    assert "10 images, all as in the manifest" in capsys.readouterr().out
    assert _run("show", out) == 0
    shown = capsys.readouterr().out
    assert "0.2 of the images of each class" in shown and "train" in shown
    assert load_manifest(out).name == "pets"
    assert _run(*command) == 0
    assert _run(*command, "--seed", "5") == 2
    assert "options.seed: 0 -> 5" in capsys.readouterr().err


def test_a_damaged_shard_is_exit_code_1(
    tmp_path: Path, make_tree: MakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("build", make_tree({"cat": 3}), tmp_path / "out", "--workers", "1") == 0
    tar = tmp_path / "out/train/shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[1600] ^= 4
    tar.write_bytes(bytes(data))
    capsys.readouterr()
    assert _run("verify", tmp_path / "out", "--workers", "1") == 1
    assert f"{tar}: key '00000000-" in capsys.readouterr().out
    (tmp_path / "out/manifest.json").write_text("{")
    assert _run("verify", tmp_path / "out", "--workers", "1") == 1


def test_imagenet_as_it_is_handed_out(
    tmp_path: Path, make_tar: MakeTar, encode: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class tars in a train tar, a flat validation tar, Kaggle's labels and names."""
    inner = {}
    for number, name in enumerate(("n01440764", "n01443537")):
        images = {f"{name}_{k}.JPEG": encode(10 * number + k) for k in range(3)}
        inner[f"{name}.tar"] = make_tar(tmp_path / f"{name}.tar", images).read_bytes()
    train = make_tar(tmp_path / "train.tar", inner)
    held = make_tar(
        tmp_path / "val.tar", {"val_00001.JPEG": encode(1), "val_00002.JPEG": encode(2)}
    )
    labels, names = tmp_path / "LOC_val_solution.csv", tmp_path / "LOC_synset_mapping.txt"
    labels.write_text(
        "ImageId,PredictionString\nval_00001,n01443537 1 2 3 4\nval_00002,n01440764\n"
    )
    names.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    command = ["build", train, tmp_path / "in1k", "--eval-source", held, "--workers", "1"]
    assert _run(*command, "--eval-labels", labels, "--names", names) == 0
    manifest = load_manifest(tmp_path / "in1k")
    assert manifest.labels.display == ("tench, Tinca tinca", "goldfish")
    assert manifest.split("train").class_counts == (3, 3)
    assert manifest.split("eval").class_counts == (1, 1)
    assert manifest.eval_twins == 2
    assert "list: 8 images in train and eval, 2 classes" in capsys.readouterr().out


def test_index_from_the_command_line(tmp_path: Path, make_tar: MakeTar, encode: Encode) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    make_tar(folder / "x-train-0.tar", {"0.jpg": encode(), "0.cls": b"1"})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    command = ["index", folder, "--workers", "1", "--classes-file", tmp_path / "classes.txt"]
    assert _run(*command, "--split", "train=*-train-*.tar") == 0
    assert load_manifest(folder).labels.classes == ("cat", "dog")
    assert _run(*command) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "nowhere", "out"], "nowhere: no such folder or archive"),
        (["build", ".", "out", "--holdout", "2.0"], "--holdout 2.0: field 'fraction' is 2.0"),
        (["build", ".", "out", "--holdout", "some"], "--holdout some: 'some' is no rule"),
        (["build", ".", "out", "--holdout", "train=0.1"], "so no holdout is train"),
        (["build", ".", "out", "--holdout", "3", "--holdout", "eval=4"], "has a rule already"),
        (["build", ".", "out", "--layout", "mnist"], "--layout 'mnist' is unknown; there are:"),
        (
            ["build", ".", "out", "--transcode", "resize"],
            "resize and only resize takes a size: resize:256",
        ),
        (
            ["build", ".", "out", "--transcode", "resize:256:90"],
            "'resize:256:90'; expected none, lossless or",
        ),
        (["build", ".", "out", "--transcode", "lossless:2"], "'lossless:2'; expected none"),
        (["build", ".", "out", "--against", "nowhere"], "nowhere: no such folder of shards"),
        (["build", ".", "out", "--label-space", "imagenet_2k"], "imagenet_2k"),
        (["build", ".", "out", "--near-duplicates", "9"], "field 'near_duplicates' is 9"),
        (["build", ".", "out", "--element", "0/4"], "name it with --stage check or write"),
        (["build", ".", "out", "--eval-source", ".", "--layout", "pets"], "goes with --layout f"),
        (["build", ".", "out", "--stage", "arrange", "--element", "0/4"], "is one piece"),
        (["build", ".", "out", "--min-side", "0"], "min_side' is 0"),
        (["build", ".", "out", "--shard-mb", "0"], "field 'shard_mb' is 0.0"),
        (["build", ".", "out", "--split", "train"], "'train' is not NAME=FOLDER"),
        (["build", ".", "out", "--name", "a/b"], "field 'name' is 'a/b'"),
        (["build", ".", "out", "--eval-labels", "x"], "--eval-source, which is missing"),
        (["verify", "nowhere"], "nowhere: no such folder of shards"),
        (["show", "nowhere"], "nowhere: no such folder of shards"),
        (["index", "nowhere"], "nowhere: no such folder"),
        (["index", ".", "--label-space", "imagenet_2k"], "imagenet_2k"),
        (["labels", "imagenet_2k"], "imagenet_2k"),
    ],
)
def test_wrong_use_is_exit_code_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "0/0"])
def test_an_element_is_k_of_n_from_zero(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["build", ".", "out", "--stage", "check", f"--element={text}"])
    assert stopped.value.code == 2
    assert "is not K/N with K from 0 to N - 1" in capsys.readouterr().err


def test_options_say_the_whole_spec(tmp_path: Path, make_tree: MakeTree) -> None:
    """Every choice of a build is an option, and arrives."""
    tree = make_tree({"cat": 30, "dog": 30})
    assert _run("build", tree, tmp_path / "other", "--classes", "dog", "--workers", "1") == 0
    words = ["--holdout", "0.1", "--holdout", "minival=2", "--holdout", "late=first:3"]
    words += ["--duplicates", "drop", "--against", tmp_path / "other", "--allow-empty"]
    words += ["--min-side", "8", "--orientation", "apply", "--check", "full", "--seed", "9"]
    words += ["--per-class", "4", "--shard-samples", "3", "--name", "odd", "--workers", "1"]
    words += ["--transcode", "resize:10:q80", "--scratch", tmp_path / "scratch"]
    args = _parser().parse_args(["build", str(tree), str(tmp_path / "out"), *map(str, words)])
    job = build_command.read_job(args)
    assert job.spec.model_dump(mode="json", exclude={"against"}) == {
        "name": "odd",
        "layout": "folders",
        "splits": None,
        "eval_labels": None,
        "classes": [],
        "label_space": "",
        "names": None,
        "per_class": 4,
        "shard_mb": 256.0,
        "shard_samples": 3,
        "seed": 9,
        "allow_empty": True,
        "duplicates": "drop",
        "near_duplicates": 0,
        "holdouts": {
            "eval": {"fraction": 0.1, "count": None, "first": None},
            "minival": {"fraction": None, "count": 2, "first": None},
            "late": {"fraction": None, "count": None, "first": 3},
        },
        "clean": {**CleanRules(min_side=8, orientation="apply").model_dump(mode="json")},
        "transcode": {
            **TranscodeSpec(kind="resize", short_px=10, quality=80).model_dump(mode="json")
        },
    }
    assert [Path(other.folder).name for other in job.spec.against] == ["other"]
    assert job.work.parent == tmp_path / "scratch" and job.work.name.startswith("out-")


def test_stages_from_the_command_line(
    tmp_path: Path, make_tree: MakeTree, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", make_tree({"cat": 70}), tmp_path / "out", "--workers", "1"]
    assert _run(*command, "--dry-run") == 0
    assert "out: would be built, layout folders" in capsys.readouterr().out
    for stage, element in [
        ("list", ""),
        ("check", "1/2"),
        ("check", "0/2"),
        ("arrange", ""),
        ("write", "0/1"),
    ]:
        words = ["--stage", stage, *(["--element", element] if element else [])]
        assert _run(*command, *words) == 0
        assert not (tmp_path / "out/manifest.json").exists()
    assert "list: 70 images in train, 1 classes" in capsys.readouterr().out
    assert _run(*command, "--stage", "finish") == 0
    assert "classes    1: cat" in capsys.readouterr().out
    assert _run(*command, "--dry-run") == 0
    assert "is finished already" in capsys.readouterr().out


def test_a_reader_that_has_enough_is_no_error(
    tmp_path: Path, make_tree: MakeTree, repo: Path
) -> None:
    tree, out = make_tree({"cat": 3}), tmp_path / "out"
    assert _run("build", tree, out, "--workers", "1") == 0
    command = f"{sys.executable} -m data_prep show {out} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=repo, capture_output=True, timeout=30)
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def test_digits_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "digits-raw"
    assert _run("synthetic", "digits", out) == 0
    files = sorted(out.glob("*/*.jpg"))
    assert len(files) == 1797 and {path.parent.name for path in files} == set("0123456789")
    image = Image.open(io.BytesIO(files[0].read_bytes()))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
    before = files[0].stat().st_mtime_ns
    assert _run("synthetic", "digits", out) == 0
    assert files[0].stat().st_mtime_ns == before
    files[0].unlink()
    assert _run("synthetic", "digits", out) == 2
    assert "is there already and holds no digits" in capsys.readouterr().err


def test_help_is_quick(repo: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", "--help"], cwd=repo, capture_output=True, timeout=30
    )
    assert done.returncode == 0 and b"build" in done.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.5  # 0.03 s is usual
    code = "import data_prep.__main__, sys; assert not {'numpy', 'torch', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=repo, check=True, timeout=30)


def test_no_command_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "synthetic" in capsys.readouterr().out


def test_a_disk_that_errs_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").symlink_to("/proc/self/mem")  # to read it is an I/O error
    assert main(["verify", str(tmp_path)]) == 1
    assert "data_prep: " in (error := capsys.readouterr().err)
    assert "Input/output error" in error and "Traceback" not in error
