"""Starting from weights from elsewhere: what a file gives, and what is refused before step one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.data.labels import LabelSpace, published
from pipeline.data.manifest import load_manifest
from pipeline.export.package import load_package
from pipeline.jobs.elsewhere import Origin, from_elsewhere, is_elsewhere
from pipeline.jobs.port import port
from pipeline.jobs.start import adopt, first_weights, open_package
from pipeline.models.network import build_network
from pipeline.models.table import TABLE, ModelSpec
from pipeline.parallel.world import World
from pipeline.recipe import Recipe, load_recipe
from pipeline.spec import Failure, Misuse
from pipeline.tracking.settings import TrackingSpec
from tests.unit.models.bundles import MICRO

ALONE = World(0, 1, torch.device("cpu"), owns_group=False)
FILES = Path(__file__).parents[1] / "models" / "files"
TINY_NET = "timm/test_efficientnet"
"""A model of 0.4 million weights that timm has for tests."""


@pytest.fixture
def micro(monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the row of the TensorFlow checkpoint in `files` into the table; returns its name."""
    monkeypatch.setitem(TABLE, "micro", MICRO)
    return "micro"


@pytest.fixture
def recipe(repo: Path, low_digits: Path) -> Callable[..., Recipe]:
    """Load the demo's config with overrides."""

    def load(*words: str) -> Recipe:
        return load_recipe(repo / "configs" / "demo.yaml", [f"data={low_digits}", *words])

    return load


def make(model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with BatchNorm statistics that no fresh model has."""
    rng = torch.Generator().manual_seed(3)
    state = dict(model.state_dict())
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            state[name] = tensor + 0.1 * torch.rand(tensor.shape, generator=rng)
    return state


@pytest.fixture(scope="module")
def b0() -> dict[str, Tensor]:
    return make(timm.create_model("tf_efficientnetv2_b0", num_classes=1000))


def start(recipe: Recipe) -> dict[str, Tensor]:
    return first_weights(recipe, load_manifest(Path(recipe.data.path)), ALONE).state_dict()


def spec(name: str, **settings: Any) -> ModelSpec:
    return ModelSpec(name=name, **settings)


def test_only_the_three_libraries_are_elsewhere() -> None:
    for name in ("tf:a/b", "timm:x.pth", "torchvision:x.pth"):
        assert is_elsewhere(name)
    for name in ("models:/a/3", "runs/tf", "tf", "keras:x", "/a/timm:b"):
        assert not is_elsewhere(name)


def test_a_training_starts_from_a_checkpoint_of_tensorflow(
    micro: str, recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    origin = f"tf:{FILES / 'micro'}"
    started = start(recipe(f"model={{name: {micro}, padding: same}}", f"init={origin}"))
    expected = from_elsewhere(origin, spec(micro)).state
    trunk = [name for name in started if not name.startswith("classifier.")]
    assert len(trunk) == len(expected) - 2
    assert all(torch.equal(started[name], expected[name]) for name in trunk)
    assert started["classifier.weight"].shape == (6, 16)
    said = capsys.readouterr().out
    assert f"starting from {origin}: its head of 3 classes is left out" in said


def test_a_checkpoint_that_needs_another_padding_is_refused_with_the_settings(
    micro: str, recipe: Callable[..., Recipe]
) -> None:
    words = (f"init=tf:{FILES / 'micro'}", f"model={{name: {micro}, bn_eps: 1e-5}}")
    with pytest.raises(Misuse, match=r"set model.padding=same model.bn_eps=0.001$"):
        start(recipe(*words))


def test_a_checkpoint_of_another_architecture_is_refused(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(Misuse, match=r"micro \(efficientnetv2-micro\): not the .* of 'tiny' with"):
        start(recipe(f"init=tf:{FILES / 'micro'}"))
    with pytest.raises(Misuse, match=r"'model.name' is 'timm/resnet18', but .* of TensorFlow"):
        from_elsewhere(f"tf:{FILES / 'micro'}", spec("timm/resnet18"))


@pytest.mark.parametrize(
    ("kind", "file", "row", "padding"),
    [
        ("timm", "tf_efficientnetv2_b0-c7cc451f.pth", "v2_b0", "same"),
        ("timm", "tf_efficientnetv2_b0.in1k.safetensors", "v2_b0", "same"),
    ],
)
def test_a_file_of_timm_gives_weights_settings_and_head(
    b0: dict[str, Tensor], tmp_path: Path, kind: str, file: str, row: str, padding: str
) -> None:
    path = tmp_path / file
    save_file(b0, path) if file.endswith("safetensors") else torch.save(b0, path)
    origin = from_elsewhere(f"{kind}:{path}@imagenet_1k", spec("tiny"))
    assert (origin.spec.name, origin.spec.padding, origin.spec.bn_eps) == (row, padding, 1e-3)
    assert origin.labels == published("imagenet_1k")
    assert origin.num_classes == 1000
    assert torch.equal(origin.state["stem.conv.weight"], b0["conv_stem.weight"])
    assert torch.equal(origin.state["blocks.2.expand.norm.running_var"],
                       b0["blocks.1.1.bn1.running_var"])  # fmt: skip


def test_a_file_of_torchvision_and_a_folder_of_the_hub_are_read(
    b0: dict[str, Tensor], tmp_path: Path
) -> None:
    state = make(torchvision.models.efficientnet_b0(num_classes=7))
    torch.save({"model": {}, "model_ema": state}, tmp_path / "efficientnet_b0-mine.pth")
    origin = from_elsewhere(f"torchvision:{tmp_path}/efficientnet_b0-mine.pth", spec("v1_b0"))
    assert (origin.spec.name, origin.spec.bn_eps, origin.num_classes) == ("v1_b0", 1e-5, 7)
    assert torch.equal(origin.state["classifier.bias"], state["classifier.1.bias"])

    hub = tmp_path / "hub@1"
    hub.mkdir()
    save_file(b0, hub / "model.safetensors")
    with pytest.raises(Misuse, match=r"model.safetensors: neither its name nor .* timm model"):
        from_elsewhere(f"timm:{hub}", spec("v2_b0"))
    (hub / "config.json").write_text(json.dumps({"architecture": "tf_efficientnetv2_b0"}))
    for place in (hub, f"{hub}/", hub / "model.safetensors"):
        assert from_elsewhere(f"timm:{place}", spec("v2_b0")).spec.padding == "same"


def test_head_rows_follow_the_classes_of_the_named_label_space(
    b0: dict[str, Tensor], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    torch.save(b0, tmp_path / "tf_efficientnetv2_b0.pth")
    mine = recipe("model={name: v2_b0, padding: same}")
    origin = from_elsewhere(f"timm:{tmp_path}/tf_efficientnetv2_b0.pth@imagenet_1k", mine.model)
    classes = published("imagenet_1k").classes
    labels = LabelSpace(name="some", classes=(classes[999], "n00000000", classes[3]))
    network = build_network(mine.model, 3, None)
    note = adopt(network, mine, origin, labels)
    assert "head rows of 2 of 3 classes taken over, new are n00000000" in note
    head = network.state_dict()["classifier.weight"]
    assert torch.equal(head[0], b0["classifier.weight"][999])
    assert torch.equal(head[2], b0["classifier.weight"][3])


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("imagenet_21k_google", r"1,000 outputs, but label space imagenet_21k_google has 21,843 "
         r"classes; .* \(imagenet_1k would fit\)"),
        ("imagenet", r"label space 'imagenet' is not a published one; there are: imagenet_1k"),
    ],
)  # fmt: skip
def test_another_label_space_is_refused(
    b0: dict[str, Tensor], tmp_path: Path, space: str, words: str
) -> None:
    torch.save(b0, tmp_path / "tf_efficientnetv2_b0.pth")
    with pytest.raises(Misuse, match=words):
        from_elsewhere(f"timm:{tmp_path}/tf_efficientnetv2_b0.pth@{space}", spec("v2_b0"))


def test_weights_of_another_row_or_without_a_head_are_refused(
    b0: dict[str, Tensor], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    torch.save(b0, tmp_path / "tf_efficientnetv2_b0.pth")
    with pytest.raises(Misuse, match=r"a v2_b0 does not fit model.name=tiny .* the same model"):
        start(recipe(f"init=timm:{tmp_path}/tf_efficientnetv2_b0.pth"))
    torch.save(b0, tmp_path / "tf_efficientnetv2_s.pth")
    with pytest.raises(Misuse, match=r"not the timm weights of 'v2_s' with 1000 classes"):
        from_elsewhere(f"timm:{tmp_path}/tf_efficientnetv2_s.pth", spec("v2_s"))
    body = {name: tensor for name, tensor in b0.items() if "classifier" not in name}
    torch.save(body, tmp_path / "tf_efficientnetv2_b0-body.pth")
    with pytest.raises(Misuse, match=r"holds no 'classifier.bias'"):
        from_elsewhere(f"timm:{tmp_path}/tf_efficientnetv2_b0-body.pth", spec("v2_b0"))


def test_what_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"none.pth: no such file of weights"):
        from_elsewhere(f"timm:{tmp_path}/none.pth", spec("v2_b0"))
    with pytest.raises(Misuse, match=r"none.index: cannot be read"):
        from_elsewhere(f"tf:{tmp_path}/none", spec("v2_b0"))
    (tmp_path / "tf_efficientnetv2_b0.pth").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(Failure, match=r"b0.pth: cannot be read as weights"):
        from_elsewhere(f"timm:{tmp_path}/tf_efficientnetv2_b0.pth", spec("v2_b0"))


def test_a_model_of_timm_takes_its_own_weights(tmp_path: Path) -> None:
    name = TINY_NET.removeprefix("timm/")
    theirs = timm.create_model(name, num_classes=5).eval()
    theirs.load_state_dict(make(theirs))
    torch.save(theirs.state_dict(), tmp_path / "whatever.pth")
    origin: Origin = from_elsewhere(f"timm:{tmp_path}/whatever.pth", spec(TINY_NET))
    assert origin.num_classes == 5
    ours = build_network(spec(TINY_NET), 5, None).eval()
    ours.load_state_dict(dict(origin.state))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert (ours(images) - theirs(images)).abs().max() < 1e-5
    with pytest.raises(Misuse, match="choose the model"):
        from_elsewhere(f"timm:{tmp_path}/whatever.pth", spec("timm/test_efficientnet_ln"))


def test_a_package_of_them_gives_the_library_s_logits(
    b0: dict[str, Tensor], repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(b0, tmp_path / "tf_efficientnetv2_b0.pth")
    config, target = repo / "configs" / "demo.yaml", tmp_path / "package"
    model = "model={name: v2_b0, padding: same}"
    name = f"timm:{tmp_path}/tf_efficientnetv2_b0.pth@imagenet_1k"
    assert port(config, [model, f"init={name}", f"data={tmp_path}"], target) == 0
    assert f"{name} is in {target}: a v2_b0 of 1,000 classes" in capsys.readouterr().out
    package = load_package(target)
    assert package.labels == published("imagenet_1k")
    assert package.facts["parent"] == name
    assert open_package(str(target), TrackingSpec()).digest == package.digest
    theirs = timm.create_model("tf_efficientnetv2_b0", num_classes=1000).eval()
    theirs.load_state_dict(b0)
    pixels = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    mean, std = torch.tensor(package.preprocess.mean), torch.tensor(package.preprocess.std)
    images = ((pixels - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = theirs(images)
        error = (package.logits(pixels) - expected).abs().max()
    assert expected.std() > 0
    assert error < 1e-4 * expected.abs().max()


def test_what_makes_no_package_is_refused_and_nothing_is_written(
    b0: dict[str, Tensor], repo: Path, tmp_path: Path
) -> None:
    torch.save(b0, tmp_path / "tf_efficientnetv2_b0.pth")
    config, target = repo / "configs" / "demo.yaml", tmp_path / "package"
    words = ["model={name: v2_b0, padding: same}", f"data={tmp_path}"]
    name = f"timm:{tmp_path}/tf_efficientnetv2_b0.pth"
    with pytest.raises(Misuse, match="'init.from' is 'None'; name weights from elsewhere"):
        port(config, words, target)
    with pytest.raises(Misuse, match=r"needs the classes .* init=timm:.*b0.pth@imagenet_1k"):
        port(config, [*words, f"init={name}"], target)
    with pytest.raises(Misuse, match="set model.padding=same"):
        port(config, ["model=v2_b0", f"data={tmp_path}", f"init={name}@imagenet_1k"], target)
    assert not target.exists()
    target.mkdir()
    with pytest.raises(Misuse, match="exists already"):
        port(config, [*words, f"init={name}@imagenet_1k"], target)
    with pytest.raises(Misuse, match=r"python -m pipeline port CONFIG --to FOLDER init=timm:"):
        open_package(name, TrackingSpec())
