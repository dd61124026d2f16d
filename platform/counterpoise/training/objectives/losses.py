"""Per-image classification losses.

:mod:`counterpoise.training.objectives.risks` weights the losses of a batch.

A loss is a module, so that its state between batches (its buffers) is checkpointed with the model. Most losses are
cross-entropy of adjusted logits, the others a function of -log p. A new loss is a class in this file with a line in
:data:`LOSSES`, and one with its settings in :mod:`counterpoise.config.objectives`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterpoise.config import objectives
from counterpoise.training.models import COSINE_SCALE

Head = Literal["linear", "cosine"]


class Loss(nn.Module):
    """Cross-entropy, and the base of all losses. Arguments: see :func:`make_loss`.

    Attributes:
        needs_features: True if the features must be given.
    """

    needs_features = False

    def __init__(self, settings: objectives.Loss, prior: Float[Tensor, " classes"], head: Head) -> None:
        super().__init__()

    def forward(
        self,
        logits: Float[Tensor, "n classes"],
        labels: Int[Tensor, " n"],
        features: Float[Tensor, "n d"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Return the loss of each image, at least 0; in float32 also for bfloat16 logits.

        Args:
            logits: The classifier's logits.
            labels: The true classes.
            features: The input of the last layer, not normalised.
        """
        adjusted = self.adjusted(_precise(logits), labels, features)
        return self.transform(nn.functional.cross_entropy(adjusted, labels, reduction="none"))

    def adjusted(
        self, logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], features: Float[Tensor, "n d"] | None
    ) -> Float[Tensor, "n classes"]:
        """Return the logits that the softmax takes."""
        return logits

    def transform(self, nll: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the loss of each image from its label's negative log-probability ``nll`` = -log p, at least 0."""
        return nll


class BalancedSoftmax(Loss):
    """Cross-entropy of logits + log prior, which leaves the logits free of the prior: Ren et al. 2020, theorem 1.

    A class that is never shown counts as one image in 10³⁸. It then hardly adds to the softmax, so that its logit is
    not pushed down.
    """

    log_prior: Tensor
    tau = 1.0

    def __init__(self, settings: objectives.Loss, prior: Float[Tensor, " classes"], head: Head) -> None:
        super().__init__(settings, prior, head)
        smallest = torch.finfo(torch.float32).tiny
        self.register_buffer("log_prior", prior.float().clamp(min=smallest).log(), persistent=False)

    def adjusted(
        self, logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], features: Float[Tensor, "n d"] | None
    ) -> Float[Tensor, "n classes"]:
        """Return logits + τ · log prior."""
        return logits + self.tau * self.log_prior


class LogitAdjustment(BalancedSoftmax):
    """Cross-entropy of logits + τ · log prior, which is balanced softmax for τ = 1: Menon et al. 2021, eq. 10."""

    def __init__(self, settings: objectives.LogitAdjustment, prior: Float[Tensor, " classes"], head: Head) -> None:
        super().__init__(settings, prior, head)
        self.tau = settings.tau


class Focal(Loss):
    """Focal loss -(1 - p)^γ · log p of the label's p: Lin et al. 2017, eq. 4, over a softmax."""

    def __init__(self, settings: objectives.Focal, prior: Float[Tensor, " classes"], head: Head) -> None:
        super().__init__(settings, prior, head)
        self.gamma = settings.gamma

    def transform(self, nll: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return (1 - p)^γ · nll."""
        # at p = 1 and γ < 1 the power has an infinite gradient, and 0 · ∞ would follow: the clamp's is 0
        missing = (-torch.expm1(-nll)).clamp(min=torch.finfo(nll.dtype).tiny)
        return missing**self.gamma * nll


class LDAM(Loss):
    """Cross-entropy of s · (z - margin at the label), with margins proportional to n_j^-¼: Cao et al. 2019, §3.2.

    The largest margin, that of the rarest class shown, is ``max_margin``; s is ``scale``, by default 30. Such margins
    suit logits of bounded size: the authors' z are cosines. With a cosine head z are cosines too (the head's own scale
    is divided out). With a linear head z are the unscaled logits: they may outgrow the margins, and s makes the
    gradients s times as large, so a ``scale`` near 1 or a smaller learning rate is appropriate.
    """

    margins: Tensor

    def __init__(self, settings: objectives.Ldam, prior: Float[Tensor, " classes"], head: Head) -> None:
        super().__init__(settings, prior, head)
        self.scale = settings.scale
        self.unit = COSINE_SCALE if head == "cosine" else 1.0
        rarest = prior[prior > 0].min()
        margins = settings.max_margin * (rarest / prior.clamp(min=rarest)) ** 0.25
        self.register_buffer("margins", margins.float(), persistent=False)

    def adjusted(
        self, logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], features: Float[Tensor, "n d"] | None
    ) -> Float[Tensor, "n classes"]:
        """Return s · (z - margin at the label)."""
        return self.scale * (logits / self.unit - _at(labels, logits) * self.margins)


class GeneralizedCrossEntropy(Loss):
    """Generalised cross-entropy (1 - p^q) / q of the label's p: Zhang & Sabuncu 2018, eq. 6.

    It is cross-entropy for q → 0 and 1 - p for q → 1. Hard images count for less than in cross-entropy: LfF (Nam et al.
    2020) trains its biased model with it.
    """

    def __init__(
        self, settings: objectives.GeneralizedCrossEntropy, prior: Float[Tensor, " classes"], head: Head
    ) -> None:
        super().__init__(settings, prior, head)
        self.q = settings.q

    def transform(self, nll: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return (1 - p^q) / q."""
        return -torch.expm1(-self.q * nll) / self.q  # from log p, as p^q has no gradient at p = 0


class ArcFace(Loss):
    """Cross-entropy of s · cos θ with the label's angle widened to θ + m: Deng et al. 2019, eq. 3.

    m is ``margin``, by default 0.5 (radians); s is the cosine head's scale. Beyond θ + m = π the cosine would rise
    again; the label's logit there is cos θ - m · sin m, as in the authors' first code, so that it keeps falling.
    """

    def __init__(self, settings: objectives.ArcFace, prior: Float[Tensor, " classes"], head: Head) -> None:
        super().__init__(settings, prior, head)
        self.margin = settings.margin

    def adjusted(
        self, logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], features: Float[Tensor, "n d"] | None
    ) -> Float[Tensor, "n classes"]:
        """Return s · cos θ, with the margin added to the label's angle."""
        cosines = _cosines(logits)
        widened = cosines.acos() + self.margin
        margined = torch.where(widened <= math.pi, widened.cos(), cosines - self.margin * math.sin(self.margin))
        return COSINE_SCALE * torch.where(_at(labels, logits), margined, cosines)


class AdaFace(Loss):
    """ArcFace with margins by image quality, approximated by the length of the features: Kim et al. 2022, §3.3.

    With z = clip(h · (length - mean) / (deviation + 0.001), -1, 1), the label's cos θ becomes cos(θ - m · z) - m · (1 +
    z). Hardness thus raises the gradient of a clear image (long features) and lowers that of a blurred one. m is
    ``margin``, by default 0.4; h is ``concentration``; s is the cosine head's scale.

    As in the authors' code, lengths are held within 0.001 and 100 and get no gradient, angles are held within 0.001 and
    π - 0.001, and mean and deviation are running ones, 20 and 100 at first: before they are used, each batch in
    training mode replaces a hundredth of them by its own. (One image has no deviation; it leaves the deviation as it
    is.)

    With several workers connected by torch.distributed the batch is that of all of them, so all must call a loss in
    training mode equally often. A call is a batch: of two calls for one batch, one should be in evaluation mode.
    """

    needs_features = True
    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: objectives.AdaFace, prior: Float[Tensor, " classes"], head: Head) -> None:
        super().__init__(settings, prior, head)
        self.margin, self.concentration = settings.margin, settings.concentration
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def adjusted(
        self, logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], features: Float[Tensor, "n d"] | None
    ) -> Float[Tensor, "n classes"]:
        """Return s · cos θ, with the quality-adaptive margin at the label."""
        assert features is not None, "AdaFace needs the features"
        lengths = _precise(features.detach()).norm(dim=1).clamp(1e-3, 100)
        if self.training:
            self._remember(lengths)
        z = (self.concentration * (lengths - self.mean) / (self.deviation + 1e-3)).clamp(-1, 1)[:, None]
        cosines = _cosines(logits)
        angles = (cosines.acos() - self.margin * z).clamp(1e-3, math.pi - 1e-3)
        margined = angles.cos() - self.margin * (1 + z)
        return COSINE_SCALE * torch.where(_at(labels, logits), margined, cosines)

    def _remember(self, lengths: Float[Tensor, " n"]) -> None:
        powers = lengths.double()  # a variance from sums of squares loses half of the digits
        sums = torch.stack([torch.ones_like(powers), powers, powers**2]).sum(1)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        n, total, squares = sums
        variance = (squares - total**2 / n).clamp(min=0) / (n - 1).clamp(min=1)
        self.mean.lerp_((total / n).to(self.mean), 0.01)
        self.deviation.lerp_(torch.where(n > 1, variance.sqrt().to(self.deviation), self.deviation), 0.01)


LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": Loss,
    "balanced_softmax": BalancedSoftmax,
    "logit_adjustment": LogitAdjustment,
    "focal": Focal,
    "ldam": LDAM,
    "generalized_cross_entropy": GeneralizedCrossEntropy,
    "arcface": ArcFace,
    "adaface": AdaFace,
}


def make_loss(settings: objectives.Loss, prior: Float[Tensor, " classes"], head: Head) -> Loss:
    """Return the loss that the settings name.

    Args:
        settings: Name and parameters of the loss.
        prior: The share of each class among the images that training shows, after sampling; sums to 1.
        head: ``training.head``: logits are ``COSINE_SCALE`` · cosines, or a linear layer's.
    """
    return LOSSES[settings.name](settings, prior, head)


def _precise(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the values in float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _at(labels: Int[Tensor, " n"], logits: Float[Tensor, "n classes"]) -> Bool[Tensor, "n classes"]:
    """Return a mask of each row's label.

    Unlike a gather's, the gradient of a selection by mask needs no scatter.
    """
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device)


def _cosines(logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    """Return the cosines of a cosine head's logits, 0.001 short of ±1, at which the angle's gradient is infinite."""
    return (logits / COSINE_SCALE).clamp(-1 + 1e-3, 1 - 1e-3)
