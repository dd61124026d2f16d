"""Accuracy and fairness metrics from confusion counts.

All metrics are functions of one array, the *confusion counts* (…, groups, classes, classes): the number of test images
of a group and a class that were predicted as each class. Leading dimensions are resamples (see
:mod:`counterpoise.evaluation.intervals`), so a metric is written once for the test set and its bootstrap.

The papers define "equalized odds" in two ways, each with its own name here:

======================  ================================================================================================
accuracy                correct / all, over all images, those of unknown group included
balanced_accuracy       mean accuracy of the cells (class × group); FFR §4 "Metrics"
class_balanced_accuracy mean accuracy of the classes
worst_group_accuracy    least accuracy of a cell; Sagawa et al. 2020, FFR, AIM-Fair's WST
group_std               standard deviation of the cells' accuracies, population (n); AIM-Fair's STD
demographic_parity      gap of P(ŷ=c | group)
equal_opportunity       gap of P(ŷ=c | y=c, group), the TPR; SYNAuG's EO
equalized_odds_mean     (TPR gap + FPR gap) / 2; SYNAuG's ED, AIM-Fair equation of EO, its code and its Table 8
equalized_odds_max      max(TPR gap, FPR gap); AIM-Fair's Tables 3-7 and 9-11
many, medium, few       mean accuracy of the classes with that many training images
======================  ================================================================================================

A *gap* is the largest difference between two groups. With two classes, c is the second (label 1, "positive"), and all
four equal fairlearn's. With more, each class in turn is c against the rest, and the classes' values are averaged; for
``equalized_odds_max`` the largest counts. FPR is P(ŷ=c | y≠c, group). A group without the images that a rate needs is
excluded from that gap; a metric without two groups, or without any image, is undefined and left out.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from counterpoise import config
from counterpoise.evaluation.catalogue import (
    BALANCED,
    CELL_STD,
    CLASS_MEAN,
    DEMOGRAPHIC_PARITY,
    EQUAL_OPPORTUNITY,
    EQUALIZED_ODDS_MAX,
    EQUALIZED_ODDS_MEAN,
    FEW,
    MANY,
    MEDIUM,
    OVERALL,
    WORST_GROUP,
)
from counterpoise.storage.schema import LabelSpace

Values = dict[str, np.ndarray]


def confusion_counts(
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    names: LabelSpace,
) -> Int[np.ndarray, "groups_and_unknown classes classes"]:
    """Count images by (group, class, predicted class). The last group holds the images of unknown group (-1)."""
    classes, known = names.shape
    group = np.where(groups < 0, known, groups) if names.groups else np.zeros_like(groups)
    counts = np.zeros((known + 1, classes, classes), np.int64)
    np.add.at(counts, (group, labels, predicted), 1)
    return counts


def cell_accuracies(
    confusion: Int[np.ndarray, "*resamples groups_and_unknown classes classes"],
) -> Float[np.ndarray, "*resamples classes groups"]:
    """Compute the accuracy of each cell; NaN for a cell without images."""
    known = confusion[..., :-1, :, :]
    correct = np.diagonal(known, axis1=-2, axis2=-1)
    return np.swapaxes(_ratio(correct, known.sum(-1)), -2, -1)


def class_accuracies(
    confusion: Int[np.ndarray, "*resamples groups_and_unknown classes classes"],
) -> Float[np.ndarray, "*resamples classes"]:
    """Compute the accuracy of each class over all groups, including unknown; NaN for a class without images."""
    pooled = confusion.sum(-3)
    return _ratio(np.diagonal(pooled, axis1=-2, axis2=-1), pooled.sum(-1))


def all_metrics(
    confusion: Int[np.ndarray, "*resamples groups_and_unknown classes classes"],
    train_counts: Int[np.ndarray, "classes groups"],
    settings: config.Evaluation,
) -> Values:
    """Compute every metric that is defined for these counts, each of shape (*resamples,).

    Resamples must have equal numbers of images per cell, as in the stratified bootstrap.
    """
    accuracies = cell_accuracies(confusion)
    present = ~np.isnan(accuracies.reshape(-1, *accuracies.shape[-2:])[0])
    cells = accuracies[..., present]
    classes = class_accuracies(confusion)
    metrics: Values = {OVERALL.name: _overall(confusion)}
    if present.any():
        metrics[BALANCED.name] = cells.mean(-1)
    metrics[CLASS_MEAN.name] = _mean_over(classes)
    if present.any():
        metrics |= {WORST_GROUP.name: cells.min(-1), CELL_STD.name: cells.std(-1)}
    metrics |= fairness(confusion[..., :-1, :, :])
    metrics |= shots(classes, train_counts.sum(1), settings)
    return {name: np.asarray(value) for name, value in metrics.items() if not np.isnan(value).any()}


def selection_metrics(
    confusion: Int[np.ndarray, "groups_and_unknown classes classes"], with_groups: bool = True
) -> dict[str, float]:
    """Compute the defined metrics that an epoch may be selected by, a subset of :func:`all_metrics`.

    Args:
        confusion: Counts of the validation images.
        with_groups: True if the groups of these images may be used; otherwise there are no metrics of cells.
    """
    classes = class_accuracies(confusion)
    metrics = {OVERALL.name: float(_overall(confusion)), CLASS_MEAN.name: float(classes[~np.isnan(classes)].mean())}
    accuracies = cell_accuracies(confusion)
    cells = accuracies[~np.isnan(accuracies)]
    if with_groups and len(cells):
        metrics |= {BALANCED.name: float(cells.mean()), WORST_GROUP.name: float(cells.min())}
    return metrics


def fairness(confusion: Int[np.ndarray, "*resamples groups classes classes"]) -> Values:
    """Compute the four gaps between groups; empty for fewer than two groups."""
    groups, classes = confusion.shape[-3], confusion.shape[-1]
    if groups < 2:
        return {}
    per_class = confusion.sum(-1)  # (…, groups, classes)
    images = per_class.sum(-1, keepdims=True)
    predicted = confusion.sum(-2)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    kept = slice(1, 2) if classes == 2 else slice(None)
    selection = _gap(_ratio(predicted, images)[..., kept])
    true_positive = _gap(_ratio(hits, per_class)[..., kept])
    false_positive = _gap(_ratio(predicted - hits, images - per_class)[..., kept])
    both = np.stack([true_positive, false_positive], -1)  # (…, classes, 2)
    defined = both[..., ~np.isnan(both.reshape(-1, *both.shape[-2:])[0]).any(-1), :]
    metrics = {DEMOGRAPHIC_PARITY.name: _mean_over(selection), EQUAL_OPPORTUNITY.name: _mean_over(true_positive)}
    if defined.shape[-2]:
        metrics |= {
            EQUALIZED_ODDS_MEAN.name: np.asarray(defined.mean((-2, -1))),
            EQUALIZED_ODDS_MAX.name: np.asarray(defined.max((-2, -1))),
        }
    return metrics


def shots(
    accuracies: Float[np.ndarray, "*resamples classes"],
    train_counts: Int[np.ndarray, " classes"],
    settings: config.Evaluation,
) -> Values:
    """Compute mean accuracy over classes with many, medium and few training images (Liu et al. 2019; SYNAuG §4.1)."""
    kinds = np.array([settings.shot(images) for images in train_counts.tolist()])
    members = {kind.name: kinds == kind.name for kind in (MANY, MEDIUM, FEW)}
    return {name: _mean_over(accuracies[..., classes]) for name, classes in members.items() if classes.any()}


def _overall(confusion: Int[np.ndarray, "*resamples groups classes classes"]) -> Float[np.ndarray, "*resamples"]:
    correct = np.asarray(np.diagonal(confusion, axis1=-2, axis2=-1).sum((-2, -1)))
    return _ratio(correct, np.asarray(confusion.sum((-3, -2, -1))))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    denominator = np.broadcast_to(denominator, numerator.shape)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _gap(rates: Float[np.ndarray, "*resamples groups classes"]) -> Float[np.ndarray, "*resamples classes"]:
    """Compute the largest minus the least rate over the groups that have one; NaN for fewer than two such groups."""
    defined: Bool[np.ndarray, "*resamples groups classes"] = ~np.isnan(rates)
    highest = np.where(defined, rates, -np.inf).max(-2)
    lowest = np.where(defined, rates, np.inf).min(-2)
    enough = defined.sum(-2) >= 2
    return np.subtract(highest, lowest, out=np.full(highest.shape, np.nan), where=enough)


def _mean_over(values: Float[np.ndarray, "*resamples k"]) -> Float[np.ndarray, "*resamples"]:
    """Average the defined values over the last axis; NaN if there are none."""
    defined = ~np.isnan(values)
    return _ratio(np.asarray(np.where(defined, values, 0).sum(-1)), np.asarray(defined.sum(-1)))
