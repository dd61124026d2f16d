"""Criteria against closed forms and finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise.config import Training
from counterpoise.errors import ConfigError
from counterpoise.synthesis.feedback.criteria import (
    CRITERIA,
    ClassifierContext,
    ClassStatistics,
    class_statistics,
    resolve_criterion,
    weighted_criterion,
)
from counterpoise.training.models import Classifier, build_model

CLASSES = 3


class Means(nn.Module):
    """Features are the channels' means in [0, 1]; logits are 5 times these."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, CLASSES, bias=False)
        nn.init.constant_(self.head.weight, 0)
        with torch.no_grad():
            self.head.weight += 5 * torch.eye(CLASSES)

    def forward(self, images):
        return self.head(images.mean((2, 3)))


@pytest.fixture
def judge():
    classifier = Classifier(Means())
    classifier.mean.fill_(0)
    classifier.deviation.fill_(255)
    means = torch.tensor([[0.5, 0.1, 0.1], [0.1, 0.5, 0.1], [0.1, 0.1, 0.5]])
    spread = torch.diag(torch.tensor([0.04, 0.01, 0.09]))
    statistics = ClassStatistics(means, torch.linalg.inv(spread).expand(3, 3, 3), torch.logdet(spread).expand(3))
    return ClassifierContext(classifier, 8, statistics)


def images_of(colours):
    return torch.tensor(colours).view(-1, 3, 1, 1).expand(-1, 3, 8, 8).clone()


COLOURS = [[0.9, 0.2, 0.1], [0.3, 0.3, 0.3], [0.0, 0.1, 0.8]]
LABELS = torch.tensor([0, 1, 0])


def test_loss_and_entropy_are_the_textbooks(judge):
    images = images_of(COLOURS)
    logits = 5 * np.array(COLOURS)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(probabilities[np.arange(3), LABELS])
    np.testing.assert_allclose(CRITERIA["loss"](images, LABELS, judge), expected, rtol=1e-5)
    expected = -(probabilities * np.log(probabilities)).sum(1)
    np.testing.assert_allclose(CRITERIA["entropy"](images, LABELS, judge), expected, rtol=1e-5)
    assert CRITERIA["entropy"](images, LABELS, judge)[1] == pytest.approx(math.log(3))


def test_hardness_is_the_gaussians_log_likelihood(judge):
    found = CRITERIA["hardness"](images_of(COLOURS), LABELS, judge)
    known = judge.statistics
    for row, label in enumerate(LABELS):
        gaussian = torch.distributions.MultivariateNormal(known.means[label], precision_matrix=known.precisions[label])
        assert found[row] == pytest.approx(-gaussian.log_prob(torch.tensor(COLOURS[row])).item(), rel=1e-4)


def test_a_mixture_is_the_weighted_sum_of_one_pass(judge):
    images = images_of(COLOURS)
    passes = []
    judge.classifier.register_forward_hook(lambda *_: passes.append(1))
    mixed = weighted_criterion({"loss": 0.5, "hardness": 2.0})(images, LABELS, judge)
    assert len(passes) == 1
    expected = 0.5 * CRITERIA["loss"](images, LABELS, judge) + 2 * CRITERIA["hardness"](images, LABELS, judge)
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("name", [*CRITERIA, "mixture"])
@pytest.mark.parametrize("size", [16, 24])
def test_gradients_are_the_finite_differences(name, size):
    """Through resizing, normalising and a network with random weights."""
    training = Training(backbone="small_cnn", image_size=16)
    classifier = build_model(training, CLASSES, seed=0).double()
    random = torch.Generator().manual_seed(1)
    features = torch.randn(60, 96, generator=random)
    statistics = class_statistics(features, torch.arange(60) % CLASSES, CLASSES)
    statistics = ClassStatistics(*(getattr(statistics, field).double() for field in statistics.__dataclass_fields__))
    judge = ClassifierContext(classifier, 16, statistics)
    score = weighted_criterion({"loss": 1.0, "entropy": 1.0}) if name == "mixture" else resolve_criterion(name)
    images = torch.rand(2, 3, size, size, generator=random, dtype=torch.float64).requires_grad_(True)
    labels = torch.tensor([0, 2])
    (gradient,) = torch.autograd.grad(score(images, labels, judge).sum(), images)
    direction = torch.randn(images.shape, generator=random, dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (score(images + sign * step * direction, labels, judge).sum() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-3)


# -- statistics --------------------------------------------------------------------------------------------------------


def test_statistics_of_many_images_are_the_samples():
    rng = np.random.default_rng(0)
    spread = np.array([[1.0, 0.6, 0], [0.6, 2.0, 0], [0, 0, 0.5]])
    features = np.concatenate([rng.multivariate_normal(mean, spread, 20_000) for mean in ([0, 0, 0], [4, 4, 4])])
    labels = np.repeat([0, 1], 20_000)
    found = class_statistics(torch.from_numpy(features), torch.from_numpy(labels), 2)
    np.testing.assert_allclose(found.means, [[0, 0, 0], [4, 4, 4]], atol=0.05)
    np.testing.assert_allclose(torch.linalg.inv(found.precisions[1]), spread, atol=0.07)
    np.testing.assert_allclose(found.log_determinants, np.linalg.slogdet(spread)[1], atol=0.05)


def test_few_images_are_shrunk_and_none_are_pooled():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(46, 64)))
    labels = torch.tensor([0] * 40 + [1] * 5 + [2])  # the fourth class has none
    found = class_statistics(features, labels, 4)
    for values in (found.means, found.precisions, found.log_determinants):
        assert torch.isfinite(values).all()
    assert (torch.linalg.eigvalsh(found.precisions) > 0).all()
    torch.testing.assert_close(found.precisions[2], found.precisions[3])  # pooled, both
    torch.testing.assert_close(found.means[3], features.mean(0).float())


def test_features_that_never_move_do_not_break_it():
    features = torch.randn(30, 4)
    features[:, 2] = 0.0
    found = class_statistics(features, torch.arange(30) % 2, 2)
    assert torch.isfinite(found.precisions).all()


# -- names -------------------------------------------------------------------------------------------------------------


def test_criteria_by_name_and_of_the_users_own(tmp_path, monkeypatch):
    assert resolve_criterion("loss") is CRITERIA["loss"]
    (tmp_path / "acquisition.py").write_text(
        "def margin(images, labels, classifier):\n    return images.mean((1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_criterion("acquisition:margin")(torch.ones(2, 3, 4, 4), LABELS[:2], None).tolist() == [1, 1]
    with pytest.raises(ConfigError, match="did you mean 'entropy'"):
        resolve_criterion("entropie")
    with pytest.raises(ConfigError, match=r"feedback\.criterion"):
        resolve_criterion("acquisition:nothing")
