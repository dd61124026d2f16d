"""Losses against formulas written out image by image, other libraries, and finite differences."""

import math
import threading

import numpy as np
import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

from counterpoise.config import Experiment, Objective, Training
from counterpoise.config.schema import variants_at
from counterpoise.training.models import CosineHead
from counterpoise.training.objectives import losses
from counterpoise.training.objectives.losses import LOSSES, make_loss

PRIOR = torch.tensor([0.64, 0.32, 0.04])
S = 64  # the cosine head's scale
ANGULAR = ["arcface", "adaface"]
PLAIN = [name for name in LOSSES if name not in ANGULAR]


def make(name, prior=PRIOR, head=None, **settings):
    loss = Objective(loss={"name": name, **settings}).loss
    return make_loss(loss, prior, head or ("cosine" if name in ANGULAR else "linear"))


def draw(n=50, classes=3, seed=0):
    """Logits (n, classes), labels (n,) and features (n, 5) with lengths around 20."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=random)
    return logits, torch.randint(0, classes, (n,), generator=random), 9 * torch.randn(n, 5, generator=random)


def log_p(logits, label):
    return logits[label] - math.log(sum(math.exp(value) for value in logits))


def test_there_is_a_class_for_every_name_that_the_config_knows():
    assert list(LOSSES) == list(variants_at(("stages", 0, "objective", "loss")).kinds)


# -- losses of a linear head's logits ----------------------------------------------------------------------------------

MARGINS = [0.5 * (0.04 / share) ** 0.25 for share in PRIOR.tolist()]
FORMULAS = {
    "cross_entropy": ({}, lambda z, y: -log_p(z, y)),
    "balanced_softmax": (
        {},
        lambda z, y: (
            -math.log(PRIOR[y] * math.exp(z[y]) / sum(p * math.exp(v) for p, v in zip(PRIOR.tolist(), z, strict=True)))
        ),
    ),
    "logit_adjustment": (
        {"tau": 1.7},
        lambda z, y: -log_p([v + 1.7 * math.log(p) for p, v in zip(PRIOR.tolist(), z, strict=True)], y),
    ),
    "focal": ({"gamma": 1.5}, lambda z, y: -((1 - math.exp(log_p(z, y))) ** 1.5) * log_p(z, y)),
    "ldam": ({"scale": 4}, lambda z, y: -log_p([4 * (v - MARGINS[y] * (j == y)) for j, v in enumerate(z)], y)),
    "generalized_cross_entropy": ({"q": 0.4}, lambda z, y: (1 - math.exp(log_p(z, y)) ** 0.4) / 0.4),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_loss_is_its_formula(name):
    settings, formula = FORMULAS[name]
    logits, labels, _ = draw()
    expected = [formula(row, label) for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True)]
    found = make(name, **settings)(logits, labels)
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_focal_loss_of_two_classes_is_torchvisions():
    logits, labels, _ = draw(classes=2)
    expected = torchvision.ops.sigmoid_focal_loss(logits[:, 1] - logits[:, 0], labels.float(), alpha=-1, gamma=2)
    torch.testing.assert_close(make("focal", prior=PRIOR[:2] / PRIOR[:2].sum())(logits, labels), expected)


def test_generalized_cross_entropy_lies_between_cross_entropy_and_the_missing_probability():
    logits, labels, _ = draw()
    missing = 1 - logits.softmax(1)[range(50), labels]
    plain = cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(make("generalized_cross_entropy", q=1e-6)(logits, labels), plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(make("generalized_cross_entropy", q=1 - 1e-6)(logits, labels), missing)


def test_logits_that_balanced_softmax_is_content_with_know_nothing_of_the_prior():
    """Two classes with the same images but of other frequency: the optimum's logits are equal."""
    prior, logits = torch.tensor([0.9, 0.1]), torch.zeros(1, 2, requires_grad=True)
    each = make("balanced_softmax", prior=prior)(logits.expand(2, 2), torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad((prior * each).sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros(1, 2), atol=1e-6, rtol=0)


def test_margins_of_ldam_by_hand():
    loss = make("ldam", prior=torch.tensor([16, 1, 0]) / 17, max_margin=0.8)
    assert loss.margins.tolist() == pytest.approx([0.4, 0.8, 0.8])
    assert loss(torch.zeros(2, 3), torch.tensor([0, 1])).tolist() == pytest.approx(
        [math.log(math.exp(-30 * margin) + 2) + 30 * margin for margin in (0.4, 0.8)]
    )


def test_ldam_takes_its_margins_from_the_cosines_of_a_cosine_head():
    cosines, labels = torch.tensor([[0.6, 0.1, -0.2], [0.3, 0.2, 0.0]]), torch.tensor([0, 2])
    margined = cosines - torch.tensor(MARGINS) * torch.tensor([[1, 0, 0], [0, 0, 1]])
    expected = cross_entropy(30 * margined, labels, reduction="none")
    torch.testing.assert_close(make("ldam", head="cosine")(S * cosines, labels), expected)


@pytest.mark.parametrize("name", ["balanced_softmax", "logit_adjustment", "ldam"])
def test_a_class_that_is_never_shown_does_no_harm(name):
    shown, prior = torch.tensor([0.75, 0.25]), torch.tensor([0.75, 0.0, 0.25])
    logits, labels, _ = draw(classes=3)
    labels, logits = labels % 2, logits.requires_grad_(True)
    found = make(name, prior=prior)(logits, 2 * labels)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    if name != "ldam":  # which leaves a class without margin in the softmax
        torch.testing.assert_close(found, make(name, prior=shown)(logits[:, [0, 2]], labels))
    assert make(name, prior=prior)(logits, torch.ones_like(labels)).isfinite().all()


# -- losses of angles --------------------------------------------------------------------------------------------------


def test_arcface_by_hand():
    """Two images at 60 and 30 degrees from their class and equally near to the others."""
    logits = S * torch.tensor([[0.5, 0.25, 0.25], [0.7, 0.7, math.sqrt(0.75)]])
    found = make("arcface", margin=0.3)(logits, torch.tensor([0, 2]))
    for loss, angle, other in zip(found.tolist(), (math.pi / 3, math.pi / 6), (0.25, 0.7), strict=True):
        assert loss == pytest.approx(math.log1p(2 * math.exp(S * (other - math.cos(angle + 0.3)))), rel=1e-4)


def test_arcfaces_margin_is_half_a_radian():
    logits, labels = S * torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([1])
    torch.testing.assert_close(make("arcface")(logits, labels), make("arcface", margin=0.5)(logits, labels))


def test_arcface_beyond_half_a_turn_goes_on_growing():
    angles = torch.linspace(0.1, math.pi - 0.1, 400)
    logits = S * torch.stack([angles.cos(), torch.zeros(400), torch.zeros(400)], 1)
    found = make("arcface")(logits, torch.zeros(400, dtype=torch.long))
    assert (found.diff() >= 0).all()
    assert (found.diff()[200:] > 0).all()
    last = (S * (angles[-1].cos() - 0.5 * math.sin(0.5))).item()
    assert found[-1].item() == pytest.approx(math.log(math.exp(last) + 2) - last)


def ada_margined(cosine, length, mean, deviation, margin, h):
    """Kim et al. 2022 for one label's cosine, in plain floats."""
    z = min(max(h * (min(max(length, 1e-3), 100) - mean) / (deviation + 1e-3), -1), 1)
    angle = math.acos(cosine) - margin * z
    return math.cos(min(max(angle, 1e-3), math.pi - 1e-3)) - margin * (1 + z)


@pytest.mark.parametrize("settings", [{}, {"margin": 0.7, "concentration": 2.0}])
def test_adaface_follows_a_plain_implementation_for_many_batches(settings):
    margin, h = settings.get("margin", 0.4), settings.get("concentration", 0.333)
    loss, mean, deviation = make("adaface", **settings), 20.0, 100.0
    for seed in range(60):
        _, labels, features = draw(n=8, seed=seed)
        features *= 0.1 + seed / 10  # to lengths beyond 100
        cosines = torch.rand(8, 3, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9
        lengths = np.clip(np.linalg.norm(features.numpy().astype(float), axis=1), 1e-3, 100)
        mean, deviation = 0.99 * mean + 0.01 * lengths.mean(), 0.99 * deviation + 0.01 * lengths.std(ddof=1)
        found = loss(S * cosines, labels, features)
        for i, (row, y) in enumerate(zip(cosines.double().tolist(), labels.tolist(), strict=True)):
            margined = ada_margined(row[y], lengths[i], mean, deviation, margin, h)
            others = [S * (value - margined) for j, value in enumerate(row) if j != y]
            expected = math.log1p(sum(math.exp(value) for value in others))
            assert found[i].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert loss.mean.item() == pytest.approx(mean, rel=1e-5)
    assert loss.deviation.item() == pytest.approx(deviation, rel=1e-5)


def test_adaface_with_features_of_the_mean_length_is_a_margin_on_the_cosine():
    loss = make("adaface").eval()
    features = torch.nn.functional.normalize(torch.ones(1, 5)) * 20
    found = loss(S * torch.tensor([[0.5, 0.3, 0.3]]), torch.tensor([0]), features)
    assert found.item() == pytest.approx(math.log1p(2 * math.exp(S * (0.3 - 0.1))), rel=1e-5)


def test_what_adaface_remembers_is_in_its_state_and_only_training_changes_it():
    logits, labels, features = draw()
    first, second = make("adaface"), make("adaface")
    first(logits, labels, features)
    second.load_state_dict(first.state_dict())
    assert set(first.state_dict()) == {"mean", "deviation"}
    assert second.mean == first.mean != 20
    second.eval()(logits, labels, 3 * features)
    assert second.mean == first.mean
    assert all(make(name).state_dict() == {} for name in LOSSES if name != "adaface")


def test_one_image_has_no_deviation_and_leaves_adafaces_as_it_is():
    loss, (logits, labels, features) = make("adaface"), draw(n=1)
    assert loss(logits, labels, features).isfinite().all()
    assert loss.deviation == 100
    assert loss.mean != 20


def test_no_gradient_goes_through_the_length_of_features():
    logits, labels, features = draw()
    features.requires_grad_(True)
    make("adaface")(logits.requires_grad_(True), labels, features).sum().backward()
    assert features.grad is None
    assert logits.grad.abs().sum() > 0


def test_workers_remember_the_lengths_of_the_whole_batch(monkeypatch):
    """Two threads stand for two workers with 3 and 7 of 10 images; what they would exchange meets at a barrier."""
    logits, labels, features = draw(n=10)
    alone, workers = make("adaface"), [make("adaface"), make("adaface")]
    expected, found = alone(logits, labels, features), {}
    barrier, sent = threading.Barrier(2, timeout=60), []

    def all_reduce(tensor):
        sent.append(tensor.clone())
        barrier.wait()
        tensor.copy_(sent[0] + sent[1])

    monkeypatch.setattr(losses.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(losses.dist, "all_reduce", all_reduce)

    def work(rank, own):
        found[rank] = workers[rank](logits[own], labels[own], features[own])

    threads = [threading.Thread(target=work, args=(rank, own)) for rank, own in enumerate((slice(3), slice(3, 10)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat([found[0], found[1]]), expected)
    for worker in workers:
        torch.testing.assert_close([worker.mean, worker.deviation], [alone.mean, alone.deviation])


@pytest.mark.parametrize("name", ANGULAR)
@pytest.mark.filterwarnings("ignore:Input #0 requires gradient")
def test_gradients_of_angular_losses_are_the_finite_differences(name):
    """Through the head too, for features both shorter and longer than usual."""
    torch.manual_seed(0)
    head, loss = CosineHead(5, 3).double(), make(name).eval()
    _, labels, features = draw(n=12)
    features = (features * torch.linspace(0.1, 8, 12)[:, None]).double().requires_grad_(True)
    lengths = features.detach().clone()  # which the finite differences leave alone
    assert torch.autograd.gradcheck(lambda x: loss(head(x), labels, lengths), (features,), eps=1e-6, atol=1e-4)
    (gradient,) = torch.autograd.grad(loss(head(features), labels, lengths).sum(), features)
    assert (gradient != 0).any(1).all()


# -- all losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LOSSES, "steep focal"])
@pytest.mark.parametrize("size", [0.0, 1.0, 64.0, 65.0, 1e4])
def test_losses_and_gradients_are_finite_at_extremes(name, size):
    loss = make("focal", gamma=0.3) if name == "steep focal" else make(name)
    logits = (size * torch.tensor([[1, -1, -1], [-1, 1, 1], [1, 0, 0], [0, 0, 0]])).requires_grad_(True)
    features = torch.tensor([[0.0] * 5, [1e-6] * 5, [1e6] * 5, [1.0] * 5])
    for labels in (torch.zeros(4, dtype=torch.long), torch.full((4,), 2)):
        found = loss(logits, labels, features)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert found.isfinite().all()
        assert (found >= 0).all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_bfloat16_are_computed_in_float32(name):
    logits, labels, features = draw()
    logits, features = logits.bfloat16(), features.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = make(name)(logits, labels, features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, make(name)(logits.float(), labels, features.float()), rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_an_images_loss_does_not_depend_on_its_batch(name):
    logits, labels, features = draw()
    loss = make(name).eval()
    torch.testing.assert_close(loss(logits, labels, features)[:7], loss(logits[:7], labels[:7], features[:7]))


def test_only_adaface_asks_for_features():
    assert [name for name, kind in LOSSES.items() if kind.needs_features] == ["adaface"]


@pytest.mark.parametrize("name", LOSSES)
def test_angular_losses_are_refused_without_a_cosine_head(name):
    def experiment(head):
        stage = {"name": "s", "data": ["real"], "objective": {"loss": name}}
        data = {"adapter": "testbed"}
        return Experiment(name="e", method="m", data=data, training=Training(head=head), stages=[stage])

    experiment("cosine")
    if name in ANGULAR:
        with pytest.raises(ValidationError, match=r"stages\.0\.objective\.loss[\s\S]*training\.head: cosine"):
            experiment("linear")
    else:
        experiment("linear")
