"""Settings files: extending, overriding, and every mistake named with file, field and remedy."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.spec import Misuse, Spec, canonical_json, differences, dump, load, merge


class Inner(Spec):
    peak: float = 0.1
    epochs: int


class Outer(Spec):
    name: str
    lr: Inner
    sizes: tuple[int, ...] = ()


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_parts_are_laid_under_the_file_that_extends_them(tmp_path: Path) -> None:
    write(tmp_path, "parts/a.yaml", "lr: {peak: 1.0, epochs: 3}\nname: a\n")
    write(tmp_path, "parts/b.yaml", "lr: {peak: 2.0}\n")
    top = write(tmp_path, "top.yaml", "extends: [parts/a, parts/b]\nname: top\n")
    assert load(top) == {"lr": {"peak": 2.0, "epochs": 3}, "name": "top"}


def test_a_part_may_extend_another_part_relative_to_itself(tmp_path: Path) -> None:
    write(tmp_path, "parts/base.yaml", "name: base\n")
    write(tmp_path, "parts/more.yaml", "extends: base\nlr: {epochs: 1}\n")
    top = write(tmp_path, "top.yaml", "extends: parts/more\n")
    assert load(top) == {"name": "base", "lr": {"epochs": 1}}


def test_another_kind_replaces_the_mapping_instead_of_mixing_two_kinds() -> None:
    base = {"strategy": {"kind": "deepspeed", "zero_stage": 1}}
    assert merge(base, {"strategy": {"kind": "ddp"}}) == {"strategy": {"kind": "ddp"}}
    same = merge(base, {"strategy": {"kind": "deepspeed", "bucket": 2}})
    assert same == {"strategy": {"kind": "deepspeed", "zero_stage": 1, "bucket": 2}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lr.peak=0.25", {"lr": {"peak": 0.25, "epochs": 1}, "sizes": [1, 2]}),
        ("lr.peak=1e-3", {"lr": {"peak": 0.001, "epochs": 1}, "sizes": [1, 2]}),
        ("sizes.1=7", {"lr": {"peak": 1, "epochs": 1}, "sizes": [1, 7]}),
        ("sizes=[3]", {"lr": {"peak": 1, "epochs": 1}, "sizes": [3]}),
        ("lr={epochs: 9}", {"lr": {"epochs": 9}, "sizes": [1, 2]}),
        ("new.key=a=b", {"lr": {"peak": 1, "epochs": 1}, "sizes": [1, 2], "new": {"key": "a=b"}}),
    ],
)
def test_an_override_sets_one_value(tmp_path: Path, override: str, expected: Any) -> None:
    path = write(tmp_path, "c.yaml", "lr: {peak: 1, epochs: 1}\nsizes: [1, 2]\n")
    assert load(path, [override]) == expected


@pytest.mark.parametrize("override", ["lr.peak", "=3", "sizes.9=1", "sizes.x=1", "lr={a: "])
def test_a_malformed_override_is_named(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, "c.yaml", "lr: {peak: 1}\nsizes: [1, 2]\n")
    with pytest.raises(Misuse, match="override"):
        load(path, [override])


def test_environment_references_are_kept_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    path = write(tmp_path, "c.yaml", "name: ${oc.env:SECRET_TOKEN}\n")
    assert load(path) == {"name": "${oc.env:SECRET_TOKEN}"}
    assert load(path, ["name=x${oc.env:SECRET_TOKEN}"]) == {"name": "x${oc.env:SECRET_TOKEN}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "stands twice"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("- 1\n- 2\n", "expected 'key: value'"),
        ("a: [1\n", "not valid YAML"),
        ("extends: parts/none\n", "does not exist"),
        ("extends: c\n", "circle"),
        ("extends: {a: 1}\n", "list of part names"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "c.yaml", text)
    with pytest.raises(Misuse, match=message) as caught:
        load(path)
    assert "c.yaml" in str(caught.value)


def test_a_missing_file_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path, "v2_l_21k.yaml", "a: 1\n")
    with pytest.raises(Misuse, match="there are: v2_l_21k"):
        load(tmp_path / "v2_x_21k.yaml")


def test_all_mistakes_are_reported_at_once_with_their_paths() -> None:
    values = {"lr": {"peak": "high", "warm": 1}, "sizes": [1, "x"]}
    with pytest.raises(Misuse) as caught:
        Outer.parse(values, "configs/c.yaml")
    text = str(caught.value)
    for field in ("'name' is missing", "'lr.warm' is unknown", "'lr.peak' is 'high'",
                  "'lr.epochs' is missing", "'sizes.1' is 'x'"):  # fmt: skip
        assert field in text
    assert text.count("configs/c.yaml") == 5


def test_settings_are_frozen_and_equal_ones_have_equal_digests() -> None:
    a = Outer.parse({"name": "n", "lr": {"epochs": 1}}, "a")
    b = Outer.parse({"lr": {"epochs": 1, "peak": 0.1}, "name": "n"}, "b")
    c = Outer.parse({"name": "n", "lr": {"epochs": 2}}, "c")
    assert a.digest() == b.digest() != c.digest()
    with pytest.raises(ValueError, match="frozen"):
        a.name = "other"  # type: ignore[misc]


def test_not_a_number_is_refused() -> None:
    with pytest.raises(Misuse, match=r"lr\.peak"):
        Outer.parse({"name": "n", "lr": {"epochs": 1, "peak": float("nan")}}, "c")


def test_dumped_settings_load_to_the_same_values(tmp_path: Path) -> None:
    values = {"name": "ü: [", "lr": {"peak": 1e-05, "epochs": 3}, "sizes": [], "none": None}
    path = write(tmp_path, "c.yaml", dump(values))
    assert load(path) == values


def test_differences_name_paths_and_both_values() -> None:
    old = {"lr": {"peak": 1, "kind": "cosine"}, "seed": 0}
    new = {"lr": {"peak": 2, "kind": "cosine"}, "seed": 0, "name": "x"}
    assert differences(old, new) == ["lr.peak: 1 -> 2", "name: None -> 'x'"]
    assert differences(old, old) == []


def test_canonical_json_does_not_depend_on_key_order() -> None:
    assert canonical_json({"b": 1, "a": [1, "ü"]}) == '{"a":[1,"\\u00fc"],"b":1}'
