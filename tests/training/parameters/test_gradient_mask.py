"""AIM-Fair's mask: gradients against closed forms, rankings against hand-worked cases and bounds."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise.config import Stage, Training
from counterpoise.errors import ConfigError
from counterpoise.training.models import Classifier, build_model
from counterpoise.training.parameters.gradient_mask import count, differences, mean_gradients, ranked_mask

SIMILAR = {"a": 0.1, "b": 0.4, "c": 0.2, "d": 0.3}
DIFFERENT = {"a": 1.0, "b": 4.0, "c": 3.0, "d": 2.0}


def make_stage(batch_norm="train"):
    trainable = {"name": "selective", "top_k": 2}
    return Stage(name="fair", data=["real"], trainable=trainable, batch_norm=batch_norm)


def make_batches(sizes=(6, 2), size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator) for n in sizes]
    return [(batch, torch.randint(0, 2, (len(batch),), generator=generator)) for batch in images]


def small_model(*inner):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), *inner, nn.Flatten(), nn.Linear(144, 2)))


def test_gradients_are_means_over_batches_of_a_closed_form():
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))
    batches = make_batches()
    expected = []
    for images, labels in batches:  # softmax regression: the gradient is (p - y) xᵀ, over the batch's images
        pixels = ((images - model.mean) / model.deviation).flatten(1)
        error = (model.backbone[1](pixels).softmax(1) - nn.functional.one_hot(labels, 2)).detach()
        expected.append((error.T @ pixels / len(images), error.mean(0)))
    gradients = mean_gradients(model, make_stage(), batches)
    torch.testing.assert_close(gradients["backbone.1.weight"], (expected[0][0] + expected[1][0]) / 2)
    torch.testing.assert_close(gradients["backbone.1.bias"], (expected[0][1] + expected[1][1]) / 2)


def test_the_model_is_left_as_it_was():
    model = small_model(nn.BatchNorm2d(4)).eval().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    mean_gradients(model, make_stage(), make_batches())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


def test_batch_norm_is_in_the_stages_mode():
    model = small_model(nn.BatchNorm2d(4))
    model.backbone[1].running_mean += 0.3
    found = {mode: mean_gradients(model, make_stage(mode), make_batches()) for mode in ("train", "frozen_statistics")}
    assert not torch.allclose(found["train"]["backbone.0.weight"], found["frozen_statistics"]["backbone.0.weight"])
    evaluated = copy.deepcopy(model).eval()
    for images, labels in make_batches():
        nn.functional.cross_entropy(evaluated(images), labels).backward()
    for name, parameter in evaluated.named_parameters():
        torch.testing.assert_close(found["frozen_statistics"][name], parameter.grad / 2)


def test_frozen_batch_norm_is_not_ranked():
    model = small_model(nn.BatchNorm2d(4))
    names = list(mean_gradients(model, make_stage("frozen"), make_batches()))
    assert names == ["backbone.0.weight", "backbone.0.bias", "backbone.3.weight", "backbone.3.bias"]


def test_dropout_draws_from_the_seed_and_leaves_the_global_generator_alone():
    model, before = small_model(nn.Dropout(0.5)), torch.get_rng_state()
    first, again, other = (
        mean_gradients(model, make_stage(), make_batches(), seed)["backbone.0.weight"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tensor_without_influence_has_a_gradient_of_zeros():
    model = small_model()
    model.backbone.register_parameter("unused", nn.Parameter(torch.ones(2)))
    assert mean_gradients(model, make_stage(), make_batches())["backbone.unused"].tolist() == [0, 0]


def test_gradients_that_are_not_finite_are_an_error():
    model = small_model()
    with torch.no_grad():
        model.backbone[0].weight[0] = torch.inf
    with pytest.raises(ConfigError, match="not finite"):
        mean_gradients(model, make_stage(), make_batches())


def test_differences_by_hand():
    a = {"w": torch.tensor([[1.0, -2.0], [0.0, 3.0]]), "b": torch.tensor([3.0, 4.0])}
    b = {"w": torch.tensor([[2.0, 2.0], [0.0, 2.0]]), "b": torch.tensor([4.0, -3.0])}
    assert differences(a, b, "absolute") == {"w": 6 / 4, "b": 8 / 2}
    cosine = differences(a, b, "cosine")
    assert cosine["w"] == pytest.approx(1 - 4 / (14 * 12) ** 0.5)
    assert cosine["b"] == pytest.approx(1)


def test_the_cosine_of_zeros():
    zero, other = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    assert differences(zero, zero, "cosine") == {"w": 0.0}
    assert differences(zero, other, "cosine") == {"w": 1.0}
    assert differences(other, {"w": -other["w"]}, "cosine")["w"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("top_k", "chosen"), [(2, ["c"]), (3, ["c", "d"]), (4, ["a", "b", "c", "d"]), (0.5, ["c"]), (0.75, ["c", "d"])]
)
def test_masks_by_hand(top_k, chosen):
    # ascending: a c d b; descending: b c d a
    assert ranked_mask(SIMILAR, DIFFERENT, top_k) == chosen


def test_an_empty_mask_says_how_large_k_must_be():
    with pytest.raises(ConfigError) as error:
        ranked_mask(SIMILAR, DIFFERENT, 1)
    assert "1 of 4 tensors" in str(error.value)
    assert "set top_k to 2 or more" in str(error.value)
    assert "at least 3" in error.value.allowed
    assert ranked_mask(SIMILAR, DIFFERENT, 2)


def test_more_tensors_than_there_are():
    with pytest.raises(ConfigError, match="1 to 4"):
        ranked_mask(SIMILAR, DIFFERENT, 5)


def test_of_equal_differences_the_earlier_tensor_is_first():
    same = dict.fromkeys("abcd", 1.0)
    assert ranked_mask(same, same, 2) == ["a", "b"]


def test_shares_are_rounded_to_the_nearest_count():
    assert [count(share, 62) for share in (0.645, 0.726, 0.806, 0.887, 0.968)] == [40, 45, 50, 55, 60]
    assert count(0.001, 62) == 1
    assert count(55, 62) == 55


@pytest.fixture(scope="module")
def resnet_tensors():
    return [name for name, _ in build_model(Training(backbone="resnet18"), 2, seed=0).named_parameters()]


@pytest.mark.parametrize("k", [40, 45, 50, 55, 60])
def test_of_a_resnet_18s_tensors_2k_minus_62_to_k_are_chosen(resnet_tensors, k):
    assert len(resnet_tensors) == 62
    rising = dict(zip(resnet_tensors, map(float, range(62)), strict=True))
    falling = {name: -value for name, value in rising.items()}
    assert len(ranked_mask(rising, falling, k)) == k  # both rankings agree
    assert len(ranked_mask(rising, rising, k)) == 2 * k - 62  # they are opposed
    random = np.random.default_rng(k)
    for _ in range(20):
        similar, different = (dict(zip(resnet_tensors, random.random(62).tolist(), strict=True)) for _ in range(2))
        least = set(np.array(resnet_tensors)[np.argsort(list(similar.values()))[:k]])
        greatest = set(np.array(resnet_tensors)[np.argsort(list(different.values()))[-k:]])
        chosen = ranked_mask(similar, different, k)
        assert set(chosen) == least & greatest
        assert 2 * k - 62 <= len(chosen) <= k


def test_a_tensor_that_only_the_bias_moves_is_chosen():
    """Real and biased views are the same images; the balanced one has other labels: only k of `different` counts."""
    model, real, other = small_model(), make_batches(), make_batches()
    other = [(images, 1 - labels) for images, labels in other]
    gradients = [mean_gradients(model, make_stage(), batches) for batches in (real, real, other)]
    similar = differences(gradients[0], gradients[1], "absolute")
    different = differences(gradients[1], gradients[2], "absolute")
    assert set(similar.values()) == {0.0}
    assert min(different.values()) > 0
    assert json.loads(json.dumps(different)) == different
