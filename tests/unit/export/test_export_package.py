"""Packages: what was written is what is loaded, bit by bit, or nothing is."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.data.preprocess import PreprocessSpec
from pipeline.export.package import load_package, write_package
from pipeline.export.weights import MAX_HEADER_BYTES, BrokenPackage, pack, unpack
from pipeline.models.efficientnet import EfficientNet
from pipeline.spec import Misuse
from pipeline.tracking.digests import Altered, seal
from pipeline.tracking.registry import fetch, register_package
from pipeline.tracking.settings import TrackingSpec


def weights_file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


EXPECTED = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
GOOD = {"a": entry([2, 3], 0, 24), "b": entry([4], 24, 40)}


def test_loaded_logits_equal_the_written_models_bit_by_bit(
    package_folder: Path, trained: EfficientNet, preprocess: PreprocessSpec
) -> None:
    package = load_package(package_folder)
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    with torch.inference_mode():
        right = trained(((images.float() - mean) / std).permute(0, 3, 1, 2))
    assert torch.equal(package.logits(images), right) and 0 < right.std() < 10
    assert not package.model.training
    for name, tensor in trained.state_dict().items():
        assert torch.equal(package.model.state_dict()[name], tensor), name
    assert package.labels.text(2) == "owl" and package.facts["top1"] == 0.98


def test_the_same_content_gives_the_same_digest_and_replaces_itself(
    package_folder: Path, trained: EfficientNet, preprocess: PreprocessSpec
) -> None:
    first = load_package(package_folder)
    shuffled = dict(reversed(trained.state_dict().items()))
    shuffled = {
        name: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t
        for name, t in shuffled.items()
    }
    write_package(package_folder, first.spec, shuffled, first.labels, preprocess, dict(first.facts))
    assert load_package(package_folder, first.digest).digest == first.digest
    assert [p.name for p in package_folder.parent.iterdir()] == ["package"]


def test_it_holds_no_pickle_and_names_its_signature(package_folder: Path) -> None:
    assert {p.name for p in package_folder.iterdir()} == {
        "model.safetensors", "config.json", "labels.json", "preprocess.json", "facts.json",
        "MLmodel", "manifest.sha256",
    }  # fmt: skip
    described = yaml.safe_load((package_folder / "MLmodel").read_text())
    (image,) = json.loads(described["signature"]["inputs"])
    assert image["tensor-spec"] == {"dtype": "uint8", "shape": [-1, 32, 32, 3]}
    assert "python_function" not in described["flavors"]


def test_a_state_that_does_not_fit_is_not_written(
    tmp_path: Path, package_folder: Path, trained: EfficientNet
) -> None:
    package = load_package(package_folder)
    state = trained.state_dict()
    cases = [
        {**state, "classifier.weight": torch.zeros(5, 1)},
        {name: t for name, t in state.items() if name != "classifier.bias"},
        {**state, "zz": torch.zeros(1)},
    ]
    for wrong, name in zip(cases, ("classifier.weight", "classifier.bias", "zz"), strict=True):
        with pytest.raises(ValueError, match=f"the first is {name}"):
            write_package(
                tmp_path / "new", package.spec, wrong, package.labels, package.preprocess, {}
            )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "labels.json", "preprocess.json", "facts.json"]
)
def test_one_changed_byte_is_refused_before_anything_is_parsed(
    package_folder: Path, name: str
) -> None:
    path = package_folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(Altered, match=rf"{name}: sha256"):
        load_package(package_folder)


def test_missing_folders_files_and_seals_are_named(package_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="nowhere: no such package folder"):
        load_package(tmp_path / "nowhere")
    with pytest.raises(Altered, match="expected 0000"):
        load_package(package_folder, "0" * 64)
    (package_folder / "labels.json").unlink()
    with pytest.raises(Altered, match="labels.json"):
        load_package(package_folder)
    seal(package_folder)
    with pytest.raises(Altered, match="seal does not cover labels.json"):
        load_package(package_folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{"format": 2, "model": {"name": "tiny"}, "num_classes": 4}', "format 2"),
        ("config.json", '{"model": {"name": "tiny"}, "num_classes": 9}', "9 classes"),
        ("config.json", '{"model": {"name": "resnet50"}, "num_classes": 4}', "no such model"),
        ("config.json", '{"_target_": "os.system", "num_classes": 4}', "_target_"),
        ("config.json", "[" * 100_000, "no JSON object"),
        ("labels.json", '{"name": "x", "classes": []}', "classes"),
        ("preprocess.json", '{"std": [0, 0, 0]}', "std"),
        ("facts.json", "[1]", "no JSON object"),
    ],
)
def test_sealed_nonsense_is_refused_with_file_and_field(
    package_folder: Path, name: str, text: str, message: str
) -> None:
    (package_folder / name).write_text(text)
    seal(package_folder)
    with pytest.raises(BrokenPackage, match=message):
        load_package(package_folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too few"),
        (b"\xff" * 8, "claims a header of 18,446,744,073,709,551,615 bytes"),
        (weights_file(b"{}", length=10**12), "claims a header of 1,000,000,000,000 bytes"),
        (weights_file(b" " * (MAX_HEADER_BYTES + 1)), "claims a header"),
        (weights_file(b"{nonsense"), "no JSON"),
        (weights_file(b"[" * 50_000), "no JSON"),
        (weights_file(b"[]"), "no JSON object"),
        (weights_file(b'{"a": 1}'), "describe no tensor"),
        (weights_file(b"{}"), "2 tensors are missing"),
        (weights_file(json.dumps({**GOOD, "evil": GOOD["a"]}).encode()), "1 are unknown .evil"),
        (
            weights_file(json.dumps({**GOOD, "a": entry([2, 10**15], 0, 24)}).encode()),
            "tensor a is F32 .2, 1000000000000000",
        ),
        (
            weights_file(json.dumps({**GOOD, "a": entry([2, 3], 0, 24, "F64")}).encode()),
            "tensor a is F64",
        ),
        (weights_file(json.dumps(GOOD).encode(), b"\0" * 39), "overlap, leave gaps"),
        (
            weights_file(json.dumps({**GOOD, "b": entry([4], 8, 24)}).encode(), b"\0" * 40),
            "overlap, leave gaps",
        ),
        (
            weights_file(json.dumps({**GOOD, "b": entry([4], 24, 2**62)}).encode(), b"\0" * 40),
            "overlap, leave gaps",
        ),
        (
            weights_file(
                json.dumps({**GOOD, "b": {"dtype": "F32", "shape": [4]}}).encode(), b"\0" * 40
            ),
            "no place in the file",
        ),
        (b"\x80\x04\x95pickle.....", "claims a header"),
    ],
)
def test_absurd_weight_headers_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BrokenPackage, match=message):
        unpack(data, EXPECTED, "w.safetensors")


def test_honest_weights_pass_the_same_checks() -> None:
    state = {"b": torch.arange(4.0), "a": torch.rand(2, 3).T.contiguous().T}
    got = unpack(pack(state), EXPECTED, "w")
    assert all(torch.equal(got[name], state[name]) for name in state)
    packed = weights_file(json.dumps(GOOD).encode(), b"\0" * 40)
    assert torch.equal(unpack(packed, EXPECTED, "w")["b"], torch.zeros(4))


def test_through_the_registry_the_logits_stay_and_mlflow_reads_the_signature(
    package_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    spec = TrackingSpec(uri=uri, register_as="pets")
    version = register_package(package_folder, spec, None, {})
    fetched = load_package(fetch(version.uri, spec, tmp_path / "got"), version.digest)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(fetched.logits(images), load_package(package_folder).logits(images))

    from mlflow.models import Model

    signature = Model.load(str(tmp_path / "got")).signature
    assert signature is not None
    assert str(signature.inputs).startswith("['images': Tensor('uint8', (-1, 32, 32, 3))")
    assert "'logits': Tensor('float32', (-1, 4))" in str(signature.outputs)
