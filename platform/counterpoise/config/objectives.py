"""Configuration of training objectives: one class for each loss and each risk, told apart by ``name``.

The implementations are in :mod:`counterpoise.training.objectives`, under the same names.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, PositiveFloat

from counterpoise.config.base import OR_WORD, Section, Share

# -- losses ------------------------------------------------------------------------------------------------------------


class LossSettings(Section, decides="weights"):
    """Base of the losses' settings.

    Attributes:
        angular: True if the loss is one of angles, which ``training.head: cosine`` gives.
    """

    angular: ClassVar[bool] = False


class CrossEntropy(LossSettings, decides="weights"):
    """Cross-entropy."""

    name: Literal["cross_entropy"]


class BalancedSoftmax(LossSettings, decides="weights"):
    """Cross-entropy of logits + log prior (Ren et al. 2020)."""

    name: Literal["balanced_softmax"]


class LogitAdjustment(LossSettings, decides="weights"):
    """Cross-entropy of logits + τ · log prior (Menon et al. 2021)."""

    name: Literal["logit_adjustment"]
    tau: PositiveFloat = 1.0  # strength


class Focal(LossSettings, decides="weights"):
    """Focal loss (Lin et al. 2017)."""

    name: Literal["focal"]
    gamma: PositiveFloat = 2.0  # exponent of the down-weighting of easy images


class Ldam(LossSettings, decides="weights"):
    """Margins by class size (Cao et al. 2019)."""

    name: Literal["ldam"]
    max_margin: PositiveFloat = 0.5  # the rarest class's margin
    scale: PositiveFloat = 30.0  # factor of the logits after the margin


class GeneralizedCrossEntropy(LossSettings, decides="weights"):
    """Generalised cross-entropy (Zhang & Sabuncu 2018)."""

    name: Literal["generalized_cross_entropy"]
    q: Share = 0.7  # 0 is cross-entropy, 1 mean absolute error


class ArcFace(LossSettings, decides="weights"):
    """Additive angular margin (Deng et al. 2019)."""

    angular: ClassVar[bool] = True
    name: Literal["arcface"]
    margin: PositiveFloat = 0.5  # radians


class AdaFace(LossSettings, decides="weights"):
    """Angular margin by image quality (Kim et al. 2022)."""

    angular: ClassVar[bool] = True
    name: Literal["adaface"]
    margin: PositiveFloat = 0.4
    concentration: PositiveFloat = 0.333  # h


Loss = Annotated[
    CrossEntropy | BalancedSoftmax | LogitAdjustment | Focal | Ldam | GeneralizedCrossEntropy | ArcFace | AdaFace,
    Discriminator("name"),
    OR_WORD,
]

# -- risks -------------------------------------------------------------------------------------------------------------


class RiskSettings(Section, decides="weights"):
    """Base of the risks' settings.

    Attributes:
        group_aware: True if the risk uses the groups of the images.
        needs_reference: True if the risk compares with the losses of ``reference``, an earlier stage.
    """

    group_aware: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False


class Mean(RiskSettings, decides="weights"):
    """Mean loss."""

    name: Literal["mean"]


class GroupDro(RiskSettings, decides="weights"):
    """Loss of the groups, weighted towards the worst (Sagawa et al. 2020)."""

    group_aware: ClassVar[bool] = True
    name: Literal["group_dro"]
    step_size: PositiveFloat = 0.01  # η_q
    adjustment: Annotated[float, Field(ge=0)] = 0.0  # C of the generalisation adjustment C / √n_g


class CvarDro(RiskSettings, decides="weights"):
    """Mean of the largest losses (Levy et al. 2020)."""

    name: Literal["cvar_dro"]
    worst_share: Annotated[float, Field(gt=0, le=1)] = 0.2  # α, the share of the largest losses that counts


class RelativeDifficulty(RiskSettings, decides="weights"):
    """Mean loss weighted by difficulty relative to a biased model's (Nam et al. 2020)."""

    needs_reference: ClassVar[bool] = True
    name: Literal["relative_difficulty"]


Risk = Annotated[Mean | GroupDro | CvarDro | RelativeDifficulty, Discriminator("name"), OR_WORD]


class Objective(Section, decides="weights"):
    """Training objective: a per-image loss, reduced over the batch by a risk."""

    loss: Loss = CrossEntropy(name="cross_entropy")
    risk: Risk = Mean(name="mean")
