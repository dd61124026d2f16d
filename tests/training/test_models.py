"""Backbones: what they take, what they give, and what happens with names that do not exist."""

import pytest
import torch
import torchvision
from torchvision.transforms import v2

from counterpoise.config import Training
from counterpoise.errors import ConfigError, ModelError
from counterpoise.training import models
from counterpoise.training.backbones import BUILT_IN, backbones, check_backbone, weights_name
from counterpoise.training.models import (
    Classifier,
    CosineHead,
    build_model,
    fresh_head,
    last_linear,
    small_cnn,
)


@pytest.mark.parametrize("name", ["small_cnn", "small_resnet", "resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_backbones_give_one_logit_for_each_class(name):
    training = Training(backbone=name, image_size=32)
    model = build_model(training, 5, seed=0).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert model(images).shape == (3, 5)


def test_pixels_are_normalised_as_torchvision_does():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    weights = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    expected = v2.functional.normalize(images / 255, weights.mean, weights.std).flatten(1)
    torch.testing.assert_close(Classifier(torch.nn.Flatten())(images), expected, atol=1e-5, rtol=1e-5)


def test_fresh_weights_depend_on_the_seed_and_on_nothing_else():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (build_model(Training(), 4, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_an_images_logits_do_not_depend_on_its_batch():
    model = Classifier(small_cnn(4)).train()
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model(images)[:3], model(images[:3]))


def test_small_cnn_is_small():
    model = small_cnn(8)
    macs = []

    def count(module, _, output):
        if isinstance(module, torch.nn.Conv2d):
            macs.append(module.weight.numel() * output.shape[2] * output.shape[3])

    for module in model.modules():
        module.register_forward_hook(count)
    model(torch.zeros(1, 3, 32, 32))
    assert sum(macs) < 3e6
    assert sum(parameter.numel() for parameter in model.parameters()) < 150_000


def test_an_unknown_backbone_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
        check_backbone(Training(backbone="resnet_50"))


@pytest.mark.parametrize(("name", "size"), [("alexnet", 32), ("vit_b_16", 32)])
def test_an_image_size_that_the_backbone_cannot_take_is_found_before_training(name, size):
    with pytest.raises(ConfigError, match=r"training\.image_size"):
        check_backbone(Training(backbone=name, image_size=size))
    check_backbone(Training(backbone=name, image_size=224))


def test_backbones_that_compute_while_they_are_built_are_checked_too():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    check_backbone(Training(backbone="regnet_x_400mf", image_size=64))
    assert torch.equal(torch.get_rng_state(), before)


def test_small_backbones_have_no_pretrained_weights():
    with pytest.raises(ConfigError, match=r"training\.pretrained"):
        check_backbone(Training(pretrained=True))


def test_models_with_auxiliary_heads_are_not_offered():
    assert "resnet50" in backbones()
    assert not {"googlenet", "inception_v3"} & set(backbones())


def test_pretrained_weights_are_loaded_into_all_but_the_head(monkeypatch):
    published = torchvision.models.resnet18(num_classes=1000)
    get_model = torchvision.models.get_model

    def offline(name, weights=None, **options):
        return published if weights == "DEFAULT" else get_model(name, **options)

    monkeypatch.setattr(torchvision.models, "get_model", offline)  # nothing can be downloaded in tests
    training = Training(backbone="resnet18", pretrained=True)
    state = build_model(training, 3, seed=0).backbone.state_dict()
    for name, value in published.state_dict().items():
        assert name.startswith("fc.") or torch.equal(state[name], value), name
    assert state["fc.weight"].shape == (3, 512)
    assert weights_name(training) == "ResNet18_Weights.IMAGENET1K_V1"
    assert weights_name(Training()) is None


def test_pretrained_weights_that_cannot_be_downloaded_are_a_model_error(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # refused at once
    with pytest.raises(ModelError, match="TORCH_HOME"):
        build_model(Training(backbone="squeezenet1_1", pretrained=True), 3, seed=0)


@pytest.mark.parametrize(("backbone", "width"), [("small_cnn", 96), ("resnet18", 512), ("vgg11", 4096)])
def test_features_are_what_the_last_layer_takes(backbone, width):
    model = build_model(Training(backbone=backbone, image_size=32), 3, seed=0).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    _, features = model.logits_and_features(images)
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert features.shape == (2, width)
    with torch.no_grad():
        torch.testing.assert_close(last(features), model(images))
    assert not last._forward_pre_hooks


def test_features_without_a_linear_layer_are_the_logits():
    model = build_model(Training(backbone="squeezenet1_1", image_size=32), 3, seed=0).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model.logits_and_features(images)[1], model(images))


# -- heads -------------------------------------------------------------------------------------------------------------


def images_of(n=2, size=32):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("backbone", "name"),
    [("small_cnn", "fc"), ("small_resnet", "fc"), ("resnet18", "fc"), ("vgg11", "classifier.6"), ("swin_t", "head")],
)
def test_the_last_linear_layer_is_the_one_that_gives_the_logits(backbone, name):
    model = build_model(Training(backbone=backbone, image_size=64), 7, seed=0).backbone
    found, layer = last_linear(model)
    assert found == name
    assert layer is model.get_submodule(name)
    assert layer.out_features == 7


def test_a_backbone_without_a_linear_layer_has_no_head_to_replace_or_to_draw_again():
    training = Training(backbone="squeezenet1_1", image_size=32)
    model = build_model(training, 3, seed=0)
    with pytest.raises(ConfigError, match="no linear layer"):
        last_linear(model.backbone)
    with pytest.raises(ConfigError, match="no linear layer"):
        fresh_head(model, seed=0)
    with pytest.raises(ConfigError, match=r"training\.backbone"):
        check_backbone(training.model_copy(update={"head": "cosine"}))


@pytest.mark.parametrize("backbone", ["small_cnn", "small_resnet", "resnet18", "vgg11", "maxvit_t"])
def test_a_cosine_head_sees_angles_only(backbone):
    training = Training(backbone=backbone, image_size=224 if backbone == "maxvit_t" else 32)
    with_angles = build_model(training.model_copy(update={"head": "cosine"}), 3, seed=0).eval()
    images = images_of(size=training.image_size)
    with torch.no_grad():
        logits, features = with_angles.logits_and_features(images)
        _, head = last_linear(with_angles.backbone)
        expected = 64 * torch.cosine_similarity(features[:, None], head.weight, dim=2)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        head.weight *= torch.tensor([[3.0], [0.2], [1.0]])
        torch.testing.assert_close(with_angles(images), logits)


def test_a_cosine_head_changes_nothing_of_a_model_but_its_last_layer():
    plain, with_angles = (build_model(Training(head=head), 3, seed=5) for head in ("linear", "cosine"))
    ours, theirs = with_angles.state_dict(), plain.state_dict()
    name, _ = last_linear(plain.backbone)
    assert set(theirs) - set(ours) == {f"backbone.{name}.bias"}
    for key, value in ours.items():
        assert value.shape == theirs[key].shape
        assert torch.equal(value, theirs[key]) == (key != f"backbone.{name}.weight"), key
    torch.testing.assert_close(ours[f"backbone.{name}.weight"].norm(dim=1), torch.ones(3))


def test_a_cosine_heads_logits_are_precise_where_bfloat16_is_the_rule():
    torch.manual_seed(0)
    head, features = CosineHead(200, 5), torch.randn(20, 200).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(features.float()), atol=0, rtol=0)


def test_features_of_no_length_have_finite_gradients_in_a_cosine_head():
    features = torch.zeros(2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(CosineHead(4, 3)(features).sum(), features)
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 64 * 3 / 1e-3


def test_a_model_with_a_cosine_head_is_exported_as_it_is():
    model = build_model(Training(head="cosine"), 3, seed=0).eval()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (images_of(3),), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(images_of(5)), model(images_of(5)))


def test_pretrained_weights_go_with_a_cosine_head(monkeypatch):
    published = torchvision.models.resnet18(num_classes=1000)
    get_model = torchvision.models.get_model

    def offline(name, weights=None, **options):
        return published if weights == "DEFAULT" else get_model(name, **options)

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    model = build_model(Training(backbone="resnet18", head="cosine", pretrained=True), 3, seed=0)
    assert torch.equal(model.backbone.conv1.weight, published.conv1.weight)
    assert model.backbone.fc.weight.shape == (3, 512)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_fresh_head_depends_on_the_seed_and_leaves_the_rest(head):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = build_model(Training(head=head), 3, seed=0)
    name, layer = last_linear(model.backbone)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = []
    for seed in (7, 8, 7):
        fresh_head(model, seed)
        drawn.append(layer.weight.detach().clone())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert {key for key, value in model.state_dict().items() if not torch.equal(value, start[key])} == {
        f"backbone.{name}.{key}" for key in layer.state_dict()
    }
    assert last_linear(model.backbone)[1] is layer
    with torch.random.fork_rng():
        torch.manual_seed(7)
        constructed = CosineHead(96, 3) if head == "cosine" else torch.nn.Linear(96, 3)
    assert torch.equal(drawn[0], constructed.weight)
    assert layer.weight.requires_grad


def test_built_in_backbones_are_those_that_have_a_network():
    assert list(models.BUILT_IN) == list(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("size", [1, 2, 5, 33])
def test_built_in_backbones_take_images_of_any_size(name, size):
    model = models.Classifier(models.BUILT_IN[name](3)).eval()
    assert model(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, 3)
