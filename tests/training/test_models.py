"""Backbones: what they take, what they give, and what happens with names that do not exist."""

import pytest
import torch
import torchvision
from torchvision.transforms import v2

from counterpoise.config import Training
from counterpoise.errors import ConfigError, ModelError
from counterpoise.training.models import (
    Classifier,
    backbones,
    build_model,
    check_backbone,
    small_cnn,
    weights_name,
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
