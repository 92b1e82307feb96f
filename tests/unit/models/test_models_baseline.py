"""Models of timm in the pipeline's terms: heads, noise, statistics, sizes, refusals."""

import copy
import sys
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from torch import nn

from pipeline.models.baseline import TimmNetwork, build_baseline, translate_baseline
from pipeline.models.baseline_trunk import KeyedDropPath
from pipeline.models.batchnorm import StepBatchNorm2d, commit_statistics, step_batch_norms
from pipeline.models.count import check_sizes, model_macs, model_params
from pipeline.models.network import build_network
from pipeline.models.noise import Noise
from pipeline.models.table import ModelSpec
from pipeline.plan.draws import Stream, keyed
from pipeline.spec import Misuse

Images = Callable[[int, int], torch.Tensor]
SMALL = ("test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "test_vit")


def spec_of(name: str, **settings: object) -> ModelSpec:
    return ModelSpec.parse({"name": f"timm/{name}", **settings}, "run.yaml")


def drawn(name: str, num_classes: int = 7, seed: int = 0, **settings: object) -> TimmNetwork:
    return build_baseline(spec_of(name, **settings), num_classes, np.random.default_rng(seed))


def theirs(name: str, num_classes: int) -> nn.Module:
    return timm.create_model(name, num_classes=num_classes)


@pytest.mark.parametrize("name", SMALL)
def test_without_noise_it_computes_what_timm_does(name: str, images: Images) -> None:
    other = theirs(name, 7).eval()
    ours = drawn(name).eval()
    ours.load_state_dict(translate_baseline(other.state_dict(), ours, name))
    with torch.inference_mode():
        expected = other(images(2, 160))
        assert expected.std() > 0
        torch.testing.assert_close(ours(images(2, 160)), expected)


def test_one_training_step_has_timm_s_gradients_and_statistics(images: Images) -> None:
    other = theirs("test_resnet", 7).double().train()
    ours = drawn("test_resnet", drop_path=0.0, bn_momentum=0.1).double().train()
    ours.load_state_dict(translate_baseline(other.state_dict(), ours, "test"))
    for model in (ours, other):
        model(images(4, 64).double()).square().mean().backward()
    commit_statistics(ours, 1, None, 1)
    right = translate_baseline(other.state_dict(), ours, "test")
    for name, buffer in ours.named_buffers():
        if name in right:
            torch.testing.assert_close(buffer, right[name], msg=name)
    grads = {name: p.grad for name, p in other.named_parameters() if p.grad is not None}
    wanted = translate_baseline({**other.state_dict(), **grads}, ours, "test")
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


@pytest.mark.parametrize("name", SMALL)
def test_the_head_is_ours_and_its_tensors_tell(name: str, images: Images) -> None:
    model = drawn(name, num_classes=5)
    head = {key for key in model.state_dict() if key.startswith("classifier.")}
    assert head == {"classifier.weight", "classifier.bias"}
    assert model.features(images(2, 160)).shape == (2, model.classifier.in_features)
    assert model(images(2, 160)).shape == (2, 5)


def test_every_batch_norm_is_collected_and_none_else_is_left() -> None:
    model = drawn("test_resnet", bn_momentum=0.03)
    plain = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert plain and all(isinstance(layer, StepBatchNorm2d) for layer in plain)
    assert {layer.momentum for layer in step_batch_norms(model)} == {0.03}
    assert {layer.eps for layer in step_batch_norms(model)} == {1e-5}
    assert not any(name.endswith("num_batches_tracked") for name in model.state_dict())


def test_the_key_alone_decides_what_is_dropped(images: Images) -> None:
    model = drawn("test_resnet", drop_path=0.5).train()

    def logits(*key: int) -> torch.Tensor:
        noise = model.draw_noise(8, 0.5, keyed(Stream.NOISE, *key))
        torch.manual_seed(sum(key) * 7)  # must not matter
        with torch.no_grad():
            return model(images(8, 32), noise)

    assert torch.equal(logits(0, 1, 0), logits(0, 1, 0))
    assert not torch.equal(logits(0, 1, 0), logits(0, 1, 1))
    assert not torch.equal(logits(0, 1, 0), logits(0, 2, 0))


def test_a_pass_draws_nothing_from_torch(images: Images) -> None:
    model = drawn("test_vit", drop_path=0.4).train()
    before = torch.get_rng_state()
    model(images(2, 160), model.draw_noise(2, 0.3, np.random.default_rng(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_each_call_of_a_drop_path_layer_takes_its_own_row() -> None:
    """convit calls one layer for both branches of a block."""
    model = drawn("convit_tiny", drop_path=0.3)
    layers = [m for m in model.modules() if isinstance(m, KeyedDropPath)]
    assert len(model.drop_rates) == 2 * len(layers)
    assert model.drop_rates == tuple(layer.rate for layer in layers for _ in range(2))


def test_masks_act_branch_by_branch_and_image_by_image(images: Images) -> None:
    model = drawn("test_vit", drop_path=0.3).train()
    ones = Noise(torch.ones(len(model.drop_rates), 3), torch.ones(3, model.classifier.in_features))
    one = ones._replace(drop_path=ones.drop_path.clone())
    one.drop_path[-1, 1] = 0
    with torch.no_grad():
        before, after = model(images(3, 160), ones), model(images(3, 160), one)
        torch.testing.assert_close(before, model(images(3, 160)))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_dropout_stands_before_the_classifier(images: Images) -> None:
    model = drawn("test_resnet").train()
    noise = model.draw_noise(2, 0.0, np.random.default_rng(0))
    silent = noise._replace(dropout=torch.zeros_like(noise.dropout))
    assert torch.equal(model(images(2, 64), silent), model.classifier.bias.expand(2, -1))


def test_a_model_without_drop_path_takes_noise_all_the_same(images: Images) -> None:
    model = drawn("mobilenetv3_small_050", drop_path=0.0).train()
    noise = model.draw_noise(2, 0.1, np.random.default_rng(0))
    assert noise.drop_path.shape == (0, 2)
    assert model(images(2, 32), noise).shape == (2, 7)


def test_noise_acts_in_training_only(images: Images) -> None:
    model = drawn("test_resnet", drop_path=0.5).eval()
    noise = model.draw_noise(2, 0.5, np.random.default_rng(0))
    with torch.inference_mode():
        assert torch.equal(model(images(2, 32), noise), model(images(2, 32)))


def test_the_seed_decides_the_first_weights_and_nothing_global_moves() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()
    one, two, other = drawn("test_resnet"), drawn("test_resnet"), drawn("test_resnet", seed=1)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_equal(np.random.get_state(), numpy_before)


def test_timm_s_first_weights_survive_our_batch_norm() -> None:
    """The last BatchNorm of a residual block starts at zero there."""
    zeros = [n for n in step_batch_norms(drawn("resnet18").trunk) if n.weight.eq(0).all()]
    assert len(zeros) == 8


def test_a_copy_has_masks_of_its_own(images: Images) -> None:
    model = drawn("test_resnet", drop_path=0.5).train()
    twin = copy.deepcopy(model)
    noise = model.draw_noise(4, 0.0, np.random.default_rng(0))
    assert twin._masks is not model._masks
    assert torch.equal(model(images(4, 32), noise), twin(images(4, 32), noise))
    assert model._masks.rows is None and twin._masks.rows is None


def test_it_compiles_as_one_graph_and_once(images: Images) -> None:
    torch._dynamo.reset()  # what other tests compiled of the same code would count
    model = drawn("test_resnet", drop_path=0.5).train()
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            noise = model.draw_noise(4, 0.2, np.random.default_rng(seed))
            torch.testing.assert_close(compiled(images(4, 32), noise), model(images(4, 32), noise))


def test_the_same_call_builds_ours_and_theirs() -> None:
    assert isinstance(build_network(spec_of("test_resnet"), 3, None), TimmNetwork)
    assert type(build_network(ModelSpec(name="tiny"), 3, None)).__name__ == "EfficientNet"


@pytest.mark.parametrize("name", ["v1_b0", "v2_b0"])
def test_counting_by_running_agrees_with_counting_on_paper(name: str) -> None:
    library = {"v1_b0": "tf_efficientnet_b0", "v2_b0": "tf_efficientnetv2_b0"}[name]
    for px in (192, 224):
        ours, other = ModelSpec(name=name), spec_of(library)
        assert model_macs(ours, px, 1000) == model_macs(other, px, 1000)
        assert model_params(ours, 1000) == model_params(other, 1000)


def test_sizes_that_fit_pass_and_others_are_answered_with_field_and_remedy() -> None:
    check_sizes(spec_of("test_resnet"), {"stages.0.px": 32, "preprocess.eval_px": 97})
    check_sizes(spec_of("test_vit"), {"stages.0.px": 128})  # the positions are interpolated
    check_sizes(ModelSpec(name="v2_s"), {"stages.0.px": 8})  # the plan knows a row's strides
    with pytest.raises(Misuse, match=r"field 'stages.1.px': timm/mixer_s32_224 .*set stages.1.px="):
        check_sizes(spec_of("mixer_s32_224"), {"stages.0.px": 224, "stages.1.px": 192})
    with pytest.raises(Misuse, match="preprocess.eval_px"):
        check_sizes(spec_of("test_vit"), {"preprocess.eval_px": 171})


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(Misuse, match=r"'timm/resnt50': timm .* the nearest are .*timm/resnet50,"):
        model_params(spec_of("resnt50"), 10)


def test_a_model_that_drops_parts_of_images_is_refused_with_the_remedy(images: Images) -> None:
    with pytest.raises(Misuse, match="timm/mobilevit_xxs': it drops .*set model.drop_path=0"):
        drawn("mobilevit_xxs")
    assert drawn("mobilevit_xxs", drop_path=0.0).train()(images(2, 64)).shape == (2, 7)


def test_a_model_that_throws_dice_by_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models.resnet import ResNet

    plain = ResNet.forward_features
    monkeypatch.setattr(
        ResNet, "forward_features", lambda self, x: plain(self, x + torch.rand_like(x))
    )
    with pytest.raises(Misuse, match="draws random numbers by itself .aten.rand"):
        drawn("resnet14t", drop_path=0.11)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Misuse, match=r"pip install 'effnet-cluster\[timm\]'"):
        drawn("resnet26", drop_path=0.12)


@pytest.mark.parametrize(
    "name",
    ["timm/", "timm/hf-hub:me/evil", "timm/local-dir:x", "timm/a/b", "timm/../x", "resnet50"],
)
def test_only_plain_names_of_the_library_are_taken(name: str) -> None:
    with pytest.raises(Misuse, match="no such model"):
        ModelSpec.parse({"name": name}, "run.yaml")


@pytest.mark.parametrize("settings", [{"padding": "same"}, {"bn_eps": 1e-5}])
def test_settings_that_timm_s_models_keep_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(Misuse, match="keeps its own padding and eps"):
        spec_of("resnet50", **settings)


def test_weights_of_another_head_or_model_are_refused() -> None:
    ours = drawn("test_resnet", num_classes=7)
    with pytest.raises(Misuse, match="w.pth: not the weights of 'timm/test_resnet' with 7 classes"):
        translate_baseline(theirs("test_resnet", 9).state_dict(), ours, "w.pth")
    with pytest.raises(Misuse, match="tensors differ, the first is"):
        translate_baseline(theirs("test_convnext", 7).state_dict(), ours, "w.pth")
