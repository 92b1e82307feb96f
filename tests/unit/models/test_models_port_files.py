"""Files of timm and torchvision: the right weights come out, nothing is run, damage is named."""

import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.port_files import find_file, model_names, read_state
from pipeline.spec import Failure, Misuse

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.num_batches_tracked": torch.tensor(7)}
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def test_safetensors_and_both_formats_of_torch_save_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    torch.save(OrderedDict(STATE), tmp_path / "new.pth")
    torch.save(STATE, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("m.safetensors", "new.pth", "old.bin"):
        assert same(read_state(tmp_path / name)), name


@pytest.mark.parametrize(
    "saved",
    [
        {"state_dict": STATE, "epoch": 3, "arch": "x"},
        {"state_dict": OTHER, "state_dict_ema": STATE, "optimizer": {"state": {}}},
        {"model": OTHER, "model_ema": {f"module.{n}": t for n, t in STATE.items()}},
        {"model": {"state_dict": {f"module.{n}": t for n, t in STATE.items()}}},
        {"model_ema": {"n_averaged": torch.tensor(9), **STATE}, "model": OTHER},
    ],
)
def test_averaged_weights_are_found_in_what_training_scripts_write(
    tmp_path: Path, saved: dict[str, object]
) -> None:
    torch.save(saved, tmp_path / "checkpoint.pth")
    assert same(read_state(tmp_path / "checkpoint.pth"))


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    sign = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return Path.write_text, (sign, "x")  # pyright: ignore[reportReturnType]

    torch.save({"state_dict": STATE, "extra": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(
        Failure, match=r"trap.pth: cannot be read as weights .* would have to be run"
    ):
        read_state(tmp_path / "trap.pth")
    assert not sign.exists()


@pytest.mark.parametrize(
    "saved", [nn.Linear(2, 2).state_dict() | {"x": 3}, {}, STATE["a.weight"], [STATE]]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, saved: object) -> None:
    torch.save(saved, tmp_path / "odd.pth")
    with pytest.raises(Misuse, match=r"odd.pth: holds no state dict.* save model.state_dict\(\)"):
        read_state(tmp_path / "odd.pth")


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(Failure, match="module.pth: cannot be read as weights"):
        read_state(tmp_path / "module.pth")


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth"])
def test_a_file_cut_off_or_empty_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save = save_file if name.endswith("safetensors") else torch.save
    save(STATE, path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(Failure, match=f"{name}: cannot be read as weights"):
            read_state(path)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "m.pth")
    with (
        zipfile.ZipFile(tmp_path / "m.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in stored.namelist():
            packed.writestr(member, stored.read(member))
    with pytest.raises(Failure, match=r"bomb.pth: is compressed, which torch.save never does"):
        read_state(tmp_path / "bomb.pth")


def test_a_file_or_a_folder_of_the_hub_is_found(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert find_file(tmp_path) == tmp_path / "model.safetensors"
    assert find_file(tmp_path / "pytorch_model.bin") == tmp_path / "pytorch_model.bin"
    (tmp_path / "model.safetensors").unlink()
    assert find_file(tmp_path) == tmp_path / "pytorch_model.bin"
    with pytest.raises(Misuse, match=r"none.pth: no such file of weights; name a .safetensors"):
        find_file(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("tf_efficientnetv2_s-eb54923e.pth", "tf_efficientnetv2_s"),
        ("tf_efficientnetv2_s_21ft1k-d7dafa41.pth", "tf_efficientnetv2_s"),
        ("efficientnet_b0_rwightman-7f5810bc.pth", "efficientnet_b0"),
        ("efficientnet_v2_l-59c71312.pth", "efficientnet_v2_l"),
        ("tf_efficientnetv2_xl.in21k_ft_in1k.safetensors", "tf_efficientnetv2_xl"),
    ],
)
def test_published_files_carry_the_model_s_name(file: str, name: str) -> None:
    assert name in model_names(Path("/none") / file)


def test_the_hub_s_config_names_the_model_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "tf_efficientnetv2_m"}))
    names = model_names(tmp_path / "model.safetensors")
    assert names == ("tf_efficientnetv2_m", "model")
    assert model_names(tmp_path / "other.pth") == ("other",)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(Failure, match=r"config.json: is no JSON"):
        model_names(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[1]")
    assert model_names(tmp_path / "model.safetensors") == ("model",)
