"""Criteria of feedback guidance: differentiable scores of an image's usefulness to the task's classifier.

Guidance raises the criterion: Askari Hemmat et al., "Feedback-guided Data Synthesis for Imbalanced Classification",
TMLR 2024, section 3 and A.1. A criterion is a function of (images, labels, classifier) that scores each image by
itself. A new criterion is one function with the decorator :func:`criterion`; the config also takes ``module:function``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from counterpoise.core import plugins
from counterpoise.errors import ConfigError, did_you_mean, one_of
from counterpoise.training.models import Classifier

Images = Float[Tensor, "n 3 height width"]


@dataclass(frozen=True)
class ClassStatistics:
    """Gaussians of each class's features, from real images.

    Attributes:
        means: Mean of each class.
        precisions: Inverse covariances.
        log_determinants: Log determinants of the covariances.
    """

    means: Float[Tensor, "classes d"]
    precisions: Float[Tensor, "classes d d"]
    log_determinants: Float[Tensor, " classes"]


class ClassifierContext:
    """The classifier as criteria use it, on images with values in [0, 1] of any size.

    Args:
        classifier: The classifier; it is put into evaluation mode, its weights without gradients.
        image_size: Images are resized to this many pixels a side, as in training.
        statistics: Statistics of real images, for criteria that compare features with theirs.
    """

    def __init__(self, classifier: Classifier, image_size: int, statistics: ClassStatistics | None = None) -> None:
        self.classifier, self.image_size = classifier.eval().requires_grad_(False), image_size
        self.statistics = statistics
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def logits(self, images: Images) -> Float[Tensor, "n classes"]:
        """Return logits of the images."""
        return self._both(images)[0]

    def features(self, images: Images) -> Float[Tensor, "n d"]:
        """Return the input of the last linear layer."""
        return self._both(images)[1]

    def _both(self, images: Images) -> tuple[Tensor, Tensor]:
        if self._last is None or self._last[0] is not images:  # the parts of a weighted sum share one pass
            size = (self.image_size, self.image_size)
            resized = images.to(self.classifier.mean.dtype)
            if images.shape[2:] != size:
                resized = F.interpolate(resized, size, mode="bilinear", antialias=True)
            self._last = images, self.classifier.logits_and_features(255 * resized)
        return self._last[1]

    def forget(self) -> None:
        """Release the last images and their graph."""
        self._last = None


Criterion = Callable[[Images, Int[Tensor, " n"], ClassifierContext], Float[Tensor, " n"]]
CRITERIA: dict[str, Criterion] = {}


def criterion(function: Criterion) -> Criterion:
    """Register a criterion under its name."""
    CRITERIA[function.__name__] = function
    return function


@criterion
def loss(images: Images, labels: Int[Tensor, " n"], classifier: ClassifierContext) -> Float[Tensor, " n"]:
    """Return the cross-entropy of the requested class (equation 6): large for misclassified images."""
    return F.cross_entropy(classifier.logits(images), labels, reduction="none")


@criterion
def entropy(images: Images, labels: Int[Tensor, " n"], classifier: ClassifierContext) -> Float[Tensor, " n"]:
    """Return the prediction's entropy in nats, in [0, log classes] (equation 7): large for uncertain images."""
    logs = classifier.logits(images).log_softmax(1)
    return -(logs.exp() * logs).sum(1)


@criterion
def hardness(images: Images, labels: Int[Tensor, " n"], classifier: ClassifierContext) -> Float[Tensor, " n"]:
    """Return the negative log-likelihood of the features under their class's Gaussian (equation 8).

    It is large for images unlike the real ones: ½ · ((f - μ)ᵀ Σ⁻¹ (f - μ) + log det Σ + d · log 2π), after Sehwag et
    al. 2022, because the equation's body is illegible in the available copy of the paper.
    """
    known = classifier.statistics
    assert known is not None, "hardness needs the statistics of real features"
    features = classifier.features(images)
    away = features - known.means[labels]
    distance = torch.einsum("ni,nij,nj->n", away, known.precisions[labels], away)
    return 0.5 * (distance + known.log_determinants[labels] + features.shape[1] * math.log(2 * math.pi))


def weighted_criterion(weights: Mapping[str, float]) -> Criterion:
    """Return the weighted sum of criteria by name; see :func:`resolve_criterion`."""
    parts = [(resolve_criterion(name), weight) for name, weight in weights.items()]

    def mixed(images: Images, labels: Int[Tensor, " n"], classifier: ClassifierContext) -> Float[Tensor, " n"]:
        return torch.stack([weight * part(images, labels, classifier) for part, weight in parts]).sum(0)

    return mixed


def resolve_criterion(name: str) -> Criterion:
    """Return a registered criterion, or a function given as ``module:function``.

    Raises:
        ConfigError: There is no criterion of that name, or the module cannot be imported.
    """
    where = "feedback.criterion"
    if ":" in name:
        return plugins.load(name, where)
    if name not in CRITERIA:
        allowed = one_of(CRITERIA) + ", or module:function"
        remedy = did_you_mean(name, CRITERIA)
        raise ConfigError("unknown criterion", where=where, found=name, allowed=allowed, remedy=remedy)
    return CRITERIA[name]


def class_statistics(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int) -> ClassStatistics:
    """Return means and covariances of each class, shrunk towards a multiple of the identity.

    The shrinkage is that of Ledoit & Wolf 2004; it makes a covariance of fewer images than dimensions invertible. A
    class with fewer than two images has the pooled covariance of all classes around their means, and without any image
    the mean of all.

    Args:
        features: Features of real images.
        labels: Their classes.
        classes: Number of classes.
    """
    from sklearn.covariance import ledoit_wolf

    features, labels = features.double(), labels.long()
    present = [features[labels == label] for label in range(classes)]
    means = torch.stack([members.mean(0) if len(members) else features.mean(0) for members in present])
    centred = features - means[labels]
    pools = [centred[labels == label] if len(members) > 1 else centred for label, members in enumerate(present)]
    stacked = torch.stack([torch.from_numpy(ledoit_wolf(pool.numpy(), assume_centered=True)[0]) for pool in pools])
    ridge = 1e-6 * stacked.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)  # for features that never vary
    stacked = stacked + ridge[:, None, None] * torch.eye(features.shape[1], dtype=torch.float64)
    return ClassStatistics(
        means.float(), torch.linalg.inv(stacked).float().contiguous(), torch.linalg.slogdet(stacked).logabsdet.float()
    )
