"""Metrics against hand-worked cases, fairlearn, scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
import torchmetrics
from fairlearn import metrics as fairlearn
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from counterpoise.config import Evaluation
from counterpoise.evaluation.metrics import (
    all_metrics,
    cell_accuracies,
    class_accuracies,
    confusion_counts,
    fairness,
    shots,
)
from counterpoise.storage.schema import LabelSpace


def names(classes, groups):
    return LabelSpace(tuple(f"y{i}" for i in range(classes)), tuple(f"b{i}" for i in range(groups)))


def sample(classes, groups, n=600, seed=0):
    """Random labels and groups, and predictions that are right about two times in three, more often in group 0."""
    random = np.random.default_rng(seed)
    labels, group = random.integers(0, classes, n), random.integers(0, groups, n)
    right = random.random(n) < np.where(group == 0, 0.8, 0.55)
    return labels, group, np.where(right, labels, random.integers(0, classes, n))


def measured(labels, groups, predicted, named, train=None):
    train = np.full(named.shape, 50) if train is None else train
    values = all_metrics(confusion_counts(labels, groups, predicted, named), train, Evaluation())
    return {name: float(value) for name, value in values.items()}


def test_a_case_by_hand():
    # cell (0,0): 3 of 4 right; (0,1): 1 of 2; (1,0): 1 of 1; (1,1): 0 of 3
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    groups = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    predicted = np.array([0, 0, 0, 1, 0, 1, 1, 0, 0, 0])
    cells = [0.75, 0.5, 1.0, 0.0]
    assert measured(labels, groups, predicted, names(2, 2)) == pytest.approx(
        {
            "accuracy": 0.5,
            "balanced_accuracy": np.mean(cells),
            "class_balanced_accuracy": (4 / 6 + 1 / 4) / 2,
            "worst_group_accuracy": 0.0,
            "group_std": np.std(cells),
            "demographic_parity": abs(2 / 5 - 1 / 5),
            "equal_opportunity": 1.0,
            "equalized_odds_mean": (1.0 + (1 / 2 - 1 / 4)) / 2,
            "equalized_odds_max": 1.0,
            "medium": (4 / 6 + 1 / 4) / 2,
        }
    )


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_with_two_classes_fairness_is_fairlearns(groups, seed):
    labels, group, predicted = sample(2, groups, seed=seed)
    found = measured(labels, group, predicted, names(2, groups))
    given = {"y_true": labels, "y_pred": predicted, "sensitive_features": group}
    gaps = [
        max(frame) - min(frame)
        for frame in (
            fairlearn.MetricFrame(metrics=rate, **given).by_group
            for rate in (fairlearn.true_positive_rate, fairlearn.false_positive_rate)
        )
    ]
    assert found["demographic_parity"] == pytest.approx(fairlearn.demographic_parity_difference(**given))
    assert found["equal_opportunity"] == pytest.approx(fairlearn.equal_opportunity_difference(**given))
    assert found["equalized_odds_max"] == pytest.approx(fairlearn.equalized_odds_difference(**given))
    assert found["equalized_odds_mean"] == pytest.approx(fairlearn.equalized_odds_difference(**given, agg="mean"))
    assert found["equalized_odds_mean"] == pytest.approx(sum(gaps) / 2)


def test_with_more_classes_each_is_the_positive_one_in_turn():
    labels, group, predicted = sample(5, 3)
    found = measured(labels, group, predicted, names(5, 3))
    turns = {
        "demographic_parity": (fairlearn.demographic_parity_difference, np.mean),
        "equal_opportunity": (fairlearn.equal_opportunity_difference, np.mean),
        "equalized_odds_max": (fairlearn.equalized_odds_difference, np.max),
        "equalized_odds_mean": (lambda **given: fairlearn.equalized_odds_difference(**given, agg="mean"), np.mean),
    }
    for name, (theirs, over) in turns.items():
        values = [theirs(y_true=labels == c, y_pred=predicted == c, sensitive_features=group) for c in range(5)]
        assert found[name] == pytest.approx(over(values)), name


@pytest.mark.parametrize(("classes", "groups"), [(2, 2), (8, 4), (5, 1)])
def test_accuracies_are_scikit_learns_and_torchmetrics(classes, groups):
    labels, group, predicted = sample(classes, groups)
    found = measured(labels, group, predicted, names(classes, groups))
    cell = labels * groups + group
    by_cell = [accuracy_score(labels[cell == c], predicted[cell == c]) for c in np.unique(cell)]
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["class_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == pytest.approx(np.mean(by_cell))
    assert found["worst_group_accuracy"] == pytest.approx(min(by_cell))
    assert found["group_std"] == pytest.approx(torch.tensor(by_cell, dtype=torch.float64).std(correction=0).item())
    macro = torchmetrics.classification.MulticlassAccuracy(classes, average="macro")
    assert found["class_balanced_accuracy"] == pytest.approx(
        macro(torch.tensor(predicted), torch.tensor(labels)).item()
    )
    confusion = torchmetrics.classification.MulticlassConfusionMatrix(classes)
    np.testing.assert_array_equal(
        confusion_counts(labels, group, predicted, names(classes, groups)).sum(0),
        confusion(torch.tensor(predicted), torch.tensor(labels)).numpy(),
    )


def test_true_positive_rates_are_torchmetrics_by_group():
    labels, group, predicted = sample(2, 3)
    found = fairness(confusion_counts(labels, group, predicted, names(2, 3))[:-1])
    rates = torchmetrics.classification.BinaryGroupStatRates(num_groups=3)(
        torch.tensor(predicted), torch.tensor(labels), torch.tensor(group)
    )
    tpr, fpr = zip(*((float(tp / (tp + fn)), float(fp / (fp + tn))) for tp, fp, tn, fn in rates.values()), strict=True)
    assert float(found["equal_opportunity"]) == pytest.approx(max(tpr) - min(tpr), abs=1e-6)
    assert float(found["equalized_odds_max"]) == pytest.approx(max(max(tpr) - min(tpr), max(fpr) - min(fpr)), abs=1e-6)


def test_a_perfect_classifier_is_fair_to_the_last_digit():
    labels, group, _ = sample(4, 3)
    found = measured(labels, group, labels, names(4, 3))
    assert found["balanced_accuracy"] == found["worst_group_accuracy"] == 1
    assert found["group_std"] == found["equal_opportunity"] == found["equalized_odds_max"] == 0


def test_cells_without_images_are_left_out():
    labels, group, predicted = sample(3, 2)
    kept = ~((labels == 1) & (group == 0))
    labels, group, predicted = labels[kept], group[kept], predicted[kept]
    counts = confusion_counts(labels, group, predicted, names(3, 2))
    accuracies = cell_accuracies(counts)
    assert accuracies.shape == (3, 2)
    assert np.isnan(accuracies[1, 0])
    assert np.isnan(accuracies).sum() == 1
    found = measured(labels, group, predicted, names(3, 2))
    assert found["balanced_accuracy"] == pytest.approx(np.nanmean(accuracies))
    gaps = [abs(accuracies[c, 0] - accuracies[c, 1]) for c in (0, 2)]  # class 1 has one group: no gap
    assert found["equal_opportunity"] == pytest.approx(np.mean(gaps))
    assert class_accuracies(counts)[1] == pytest.approx(accuracies[1, 1])


def test_images_of_unknown_group_count_in_accuracy_and_per_class_only():
    labels, group, predicted = sample(3, 2)
    unknown = np.concatenate([group, [-1] * 100])
    labels, predicted = np.concatenate([labels, [0] * 100]), np.concatenate([predicted, [1] * 100])
    known = measured(labels[:-100], group, predicted[:-100], names(3, 2))
    found = measured(labels, unknown, predicted, names(3, 2))
    assert found["accuracy"] == pytest.approx(known["accuracy"] * 6 / 7)
    assert found["class_balanced_accuracy"] < known["class_balanced_accuracy"]
    for name in ("balanced_accuracy", "worst_group_accuracy", "equalized_odds_max", "demographic_parity"):
        assert found[name] == known[name]


def test_without_groups_cells_are_classes_and_there_is_no_fairness():
    labels, _, predicted = sample(4, 1)
    found = measured(labels, np.full(len(labels), -1), predicted, names(4, 0))
    assert found["balanced_accuracy"] == pytest.approx(found["class_balanced_accuracy"])
    assert set(found) == {
        "accuracy", "balanced_accuracy", "class_balanced_accuracy", "worst_group_accuracy", "group_std", "medium",
    }  # fmt: skip


def test_many_medium_and_few_are_split_by_training_images():
    accuracies = np.array([0.9, 0.8, 0.6, 0.5, 0.1])
    found = shots(accuracies, np.array([101, 100, 20, 500, 19]), Evaluation())
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"many": (0.9 + 0.5) / 2, "medium": (0.8 + 0.6) / 2, "few": 0.1}
    )
    assert set(shots(accuracies, np.full(5, 1000), Evaluation())) == {"many"}


def test_metrics_of_stacked_counts_are_the_metrics_of_each():
    counts = np.stack([confusion_counts(*sample(3, 2, n=5000, seed=seed), names(3, 2)) for seed in range(4)])
    train = np.array([[200, 1], [20, 10], [3, 3]])
    together = all_metrics(counts, train, Evaluation())
    for number, one in enumerate(counts):
        for name, value in all_metrics(one, train, Evaluation()).items():
            assert together[name][number] == pytest.approx(float(value))
