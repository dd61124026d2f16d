"""A classifier's scores as the rest of the house sees them."""

import json

import numpy as np
import pytest

from counterpoise.config import Evaluation
from counterpoise.evaluation.scores import evaluate, summarize
from counterpoise.storage.schema import LabelSpace

NAMES = LabelSpace(("cat", "dog", "cow"), ("day", "night"))
TRAIN = np.array([[500, 2], [30, 30], [5, 3]])


def predictions(n=900, seed=0, cow_at_night=True):
    random = np.random.default_rng(seed)
    labels, groups = random.integers(0, 3, n), random.integers(0, 2, n)
    kept = np.full(n, True) if cow_at_night else ~((labels == 2) & (groups == 1))
    labels, groups = labels[kept], groups[kept]
    logits = random.normal(0, 1, (len(labels), 3)) + 1.5 * np.eye(3)[labels]
    return labels, groups, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_scores_hold_metrics_intervals_and_cells():
    labels, groups, probabilities = predictions()
    scores = evaluate(labels, groups, probabilities, NAMES, TRAIN, Evaluation(bootstrap=400), seed=1)
    assert set(scores.metrics) == {
        "accuracy", "balanced_accuracy", "class_balanced_accuracy", "worst_group_accuracy", "group_std",
        "demographic_parity", "equal_opportunity", "equalized_odds_mean", "equalized_odds_max", "many", "medium", "few",
    }  # fmt: skip
    assert set(scores.intervals) == set(scores.metrics)
    for name in ("accuracy", "balanced_accuracy", "class_balanced_accuracy", "many", "medium", "few"):
        low, high = scores.intervals[name]
        assert low < scores.metrics[name] < high, name
    right = probabilities.argmax(1) == labels
    assert [(cell["label"], cell["group"]) for cell in scores.cells[:3]] == [
        ("cat", "day"),
        ("cat", "night"),
        ("dog", "day"),
    ]
    cell = scores.cells[3]
    here = (labels == 1) & (groups == 1)
    assert cell["n"] == here.sum()
    assert cell["accuracy"] == pytest.approx(right[here].mean())
    assert cell["low"] < cell["accuracy"] < cell["high"]
    assert scores.notes == []
    json.dumps([scores.metrics, scores.intervals, scores.cells], allow_nan=False)


def test_scores_are_the_same_for_the_same_seed_and_wider_for_more_confidence():
    given = (*predictions(), NAMES, TRAIN)
    first, again, other = (evaluate(*given, Evaluation(bootstrap=200), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.metrics == other.metrics
    assert first.intervals != other.intervals
    sure = evaluate(*given, Evaluation(bootstrap=200, confidence=0.999), seed=1)
    for name, (low, high) in first.intervals.items():
        assert sure.intervals[name][0] <= low <= high <= sure.intervals[name][1]


def test_without_bootstrap_there_are_no_intervals():
    scores = evaluate(*predictions(), NAMES, TRAIN, Evaluation(bootstrap=0))
    assert scores.intervals == {}
    assert {cell["low"] for cell in scores.cells} == {None}


def test_cells_without_test_images_are_none_and_noted():
    labels, groups, probabilities = predictions(cow_at_night=False)
    groups[:7] = -1
    scores = evaluate(labels, groups, probabilities, NAMES, TRAIN, Evaluation(bootstrap=50))
    assert scores.cells[5] == {
        "label": "cow", "group": "night", "n": 0, "accuracy": None, "low": None, "high": None,
    }  # fmt: skip
    assert "cow × night" in scores.notes[0]
    assert "7 test images of unknown group" in scores.notes[1]
    json.dumps([scores.metrics, scores.intervals, scores.cells], allow_nan=False)


def test_many_classes_without_groups():
    random = np.random.default_rng(0)
    names = LabelSpace(tuple(map(str, range(300))))
    labels = random.integers(0, 300, 3000)
    probabilities = random.random((3000, 300)) + 0.99 * np.eye(300)[labels]
    scores = evaluate(labels, np.full(3000, -1), probabilities, names, np.full((300, 1), 7), Evaluation(bootstrap=40))
    assert scores.intervals["accuracy"][0] < scores.metrics["accuracy"] < scores.intervals["accuracy"][1]
    assert "few" in scores.metrics


def test_the_table_over_seeds():
    rows = [
        {"method": "erm", "seed": 0, "worst_group_accuracy": 0.2, "few": None},
        {"method": "erm", "seed": 1, "worst_group_accuracy": 0.4, "few": 0.5},
        {"method": "ffr", "seed": 0, "worst_group_accuracy": 0.8},
    ]
    table = summarize(rows, ["worst_group_accuracy", "few"])
    assert list(table) == ["erm", "ffr"]
    erm = table["erm"]["worst_group_accuracy"]
    assert erm.mean == pytest.approx(0.3)
    assert erm.seeds == 2
    assert erm.bounds == pytest.approx((0.3 - 12.7062 * 0.1, 0.3 + 12.7062 * 0.1), abs=1e-4)
    assert table["erm"]["few"].mean == 0.5
    assert table["ffr"]["worst_group_accuracy"].bounds is None
    assert "few" not in table["ffr"]
