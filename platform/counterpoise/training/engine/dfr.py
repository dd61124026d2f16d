"""Deep feature reweighting (Kirichenko et al., ICLR 2023): a new last layer from features of group-balanced images.

An L1 logistic regression on the features that a fitted classifier gives of validation images. Its strength is tuned on
one half against the other; then the coefficients of several fits to group-balanced draws from all are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from counterpoise import config
from counterpoise.core.rng import Dfr, stream
from counterpoise.errors import DataError
from counterpoise.evaluation.catalogue import BALANCED, WORST_GROUP, selection_score


@dataclass(frozen=True)
class Head:
    """A last layer fitted by deep feature reweighting.

    It takes features as they come from the backbone; with ``normalize`` it takes features of length 1, see
    :func:`~counterpoise.training.models.with_normalized_head`.

    Attributes:
        weight: float32 (classes, d); the standardisation of features is part of it and of the bias.
        bias: float32 (classes,).
        best_strength: C, the inverse strength of the L1 penalty.
        score: Worst-group accuracy of that strength on the half that tuning held out.
        tuning: A row for each strength: strength, worst-group and balanced accuracy on that half.
    """

    weight: Float[np.ndarray, "classes d"]
    bias: Float[np.ndarray, " classes"]
    best_strength: float
    score: float
    tuning: list[dict[str, float]]


def fit_dfr(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    scaler_features: Float[np.ndarray, "m d"],
    settings: config.Dfr,
    classes: int,
    seed: int,
) -> Head:
    """Tune the strength and fit the last layer.

    With two classes the logits are ∓ half the decision function, so that their softmax is scikit-learn's
    probabilities. With more, liblinear fits each class against the rest (scikit-learn refuses it several classes at
    once since 1.8, and did this by itself when FFR's numbers were made); the greatest logit is the prediction, as
    there, but a softmax of these logits is not calibrated.

    Args:
        features: Features of the validation images, as the backbone gives them.
        labels: Their classes.
        groups: Their groups in any numbering; images of one class and group are a cell.
        scaler_features: Features of the training images; the final fits use their mean and deviation.
        settings: Strengths to try, number of fits, and whether features are scaled to length 1 first.
        classes: Number of logits.
        seed: Seed of the halves, the balanced sets and liblinear's order of coordinates.

    Raises:
        DataError: A class has no image, or a cell has a single one.
    """
    cells = _cells(labels, groups, classes)
    if settings.normalize:
        features, scaler_features = _unit(features), _unit(scaler_features)
    tuning = _tune(features, labels, cells, settings, seed)
    best = max(tuning, key=lambda row: selection_score(row, WORST_GROUP.name))  # the first of equals

    random = stream(seed, Dfr.REFITS)
    mean, deviation = _moments(scaler_features)
    fits = []
    for _ in range(settings.refits):
        drawn = balanced_draw(cells, random)
        fits.append(_regression((features[drawn] - mean) / deviation, labels[drawn], best["strength"], random))
    weight, bias = (np.mean(parts, axis=0) for parts in zip(*fits, strict=True))
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Head(
        weight=(weight / deviation).astype(np.float32),
        bias=(bias - weight @ (mean / deviation)).astype(np.float32),
        best_strength=best["strength"],
        score=best[WORST_GROUP.name],
        tuning=tuning,
    )


def balanced_draw(cells: Int[np.ndarray, " n"], random: np.random.Generator) -> Int[np.ndarray, " m"]:
    """Return positions of an equal number of images of each cell, drawn without replacement.

    The number is the size of the smallest cell.
    """
    members = [np.flatnonzero(cells == cell) for cell in np.unique(cells)]
    least = min(len(positions) for positions in members)
    return np.concatenate([random.permutation(positions)[:least] for positions in members])


def _cells(labels: np.ndarray, groups: np.ndarray, classes: int) -> Int[np.ndarray, " n"]:
    """Return the cell of each image, numbered from 0."""
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        missing = ", ".join(map(str, np.flatnonzero(counts == 0)))
        remedy = "give the validation split images of every class (data.splits)"
        raise DataError(
            "dfr needs validation images of every class", found=f"none of class number {missing}", remedy=remedy
        )
    pairs, cells, sizes = np.unique(np.stack([labels, groups], 1), axis=0, return_inverse=True, return_counts=True)
    if sizes.min() < 2:
        label, group = pairs[sizes.argmin()]
        raise DataError(
            "dfr needs two validation images of every cell: one to fit, one to score",
            found=f"1 image of class number {label}, group {group}",
            remedy="give the validation split more images of this cell (data.splits), or leave the dfr stage out",
        )
    return cells.reshape(-1)


def _tune(
    features: np.ndarray, labels: np.ndarray, cells: np.ndarray, settings: config.Dfr, seed: int
) -> list[dict[str, float]]:
    """Return, for each strength, accuracies on one half of a fit to a balanced draw from the other half.

    Each cell is halved on its own. The authors halve the whole, which can leave a small cell out of one half.
    """
    random = stream(seed, Dfr.TUNING)
    shuffled = [random.permutation(np.flatnonzero(cells == cell)) for cell in np.unique(cells)]
    fitted = np.concatenate([positions[len(positions) // 2 :] for positions in shuffled])
    held_out = [positions[: len(positions) // 2] for positions in shuffled]
    drawn = fitted[balanced_draw(cells[fitted], random)]
    mean, deviation = _moments(features[drawn])
    rows = []
    for strength in settings.strengths:
        weight, bias = _regression((features[drawn] - mean) / deviation, labels[drawn], strength, random)
        accuracies = []
        for positions in held_out:
            decision = (features[positions] - mean) / deviation @ weight.T + bias
            predicted = decision.argmax(1) if len(weight) > 1 else decision[:, 0] > 0
            accuracies.append(float((predicted == labels[positions]).mean()))
        worst, balanced = min(accuracies), float(np.mean(accuracies))
        rows.append({"strength": strength, WORST_GROUP.name: worst, BALANCED.name: balanced})
    return rows


def _regression(
    x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], strength: float, random: np.random.Generator
) -> tuple[Float[np.ndarray, "k d"], Float[np.ndarray, " k"]]:
    """Return coefficients and intercepts of each class against the rest; of two classes only the second's."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    order = int(random.integers(2**31))
    regression = LogisticRegression(l1_ratio=1, C=strength, solver="liblinear", max_iter=10_000, random_state=order)
    fits: list[Any] = OneVsRestClassifier(regression).fit(x, labels).estimators_
    return np.concatenate([fit.coef_ for fit in fits]), np.concatenate([fit.intercept_ for fit in fits])


def _moments(x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Return mean and deviation of each feature; the deviation is 1 where a feature is constant."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x.astype(np.float64))
    return scaler.mean_, scaler.scale_


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Scale rows to length 1, as :class:`~counterpoise.training.models.NormalizedLinear` does."""
    return nn.functional.normalize(torch.from_numpy(x), dim=1).numpy()
