"""Scores of a classifier on a test set, and the table of methods × metrics over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from counterpoise import config
from counterpoise.evaluation.estimate import Estimate
from counterpoise.evaluation.intervals import percentile_interval, resampled_confusions, t_interval
from counterpoise.evaluation.metrics import all_metrics, cell_accuracies, confusion_counts
from counterpoise.storage.schema import LabelSpace

Interval = tuple[float, float]


@dataclass(frozen=True)
class Scores:
    """Scores of a classifier on a test set.

    Attributes:
        metrics: Every metric of :mod:`counterpoise.evaluation.metrics` that is defined for the test set.
        intervals: Bootstrap intervals of these metrics; empty if ``evaluation.bootstrap`` is 0.
        cells: One entry per cell: label, group (names; None without groups), n, accuracy, low, high (None if
            undefined).
        notes: Sentences about images and cells that the metrics leave out.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    cells: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def evaluate(
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n classes"],
    names: LabelSpace,
    train_counts: Int[np.ndarray, "classes groups"],
    settings: config.Evaluation,
    seed: int = 0,
) -> Scores:
    """Compute accuracy and fairness of predictions, with bootstrap intervals over the test images of each cell.

    Args:
        labels: True classes.
        groups: Groups; -1 if unknown.
        probabilities: Probability of each class; the most probable one is the prediction.
        names: Names of classes and groups.
        train_counts: Real training images per cell, by which classes are many, medium or few.
        settings: Resamples, confidence, and the limits of many and few.
        seed: Seed of the bootstrap.
    """
    confusion = confusion_counts(labels, groups, probabilities.argmax(1), names)
    metrics = {name: float(value) for name, value in all_metrics(confusion, train_counts, settings).items()}
    accuracies = cell_accuracies(confusion)
    intervals: dict[str, Interval] = {}
    ends = None
    if settings.bootstrap:
        intervals, ends = _bootstrap(confusion, train_counts, settings, seed)
    counts = confusion[:-1].sum(-1).T
    cells = [
        {
            "label": names.classes[label],
            "group": names.groups[group] if names.groups else None,
            "n": int(counts[label, group]),
            "accuracy": _number(accuracies[label, group]),
            "low": None if ends is None else _number(ends[0, label, group]),
            "high": None if ends is None else _number(ends[1, label, group]),
        }
        for label, group in np.ndindex(names.shape)
    ]
    return Scores(metrics, intervals, cells, _notes(counts, int(confusion[-1].sum()), names))


def _bootstrap(
    confusion: np.ndarray, train_counts: np.ndarray, settings: config.Evaluation, seed: int
) -> tuple[dict[str, Interval], np.ndarray]:
    metrics, cells = [], []
    for chunk in resampled_confusions(confusion, settings.bootstrap, seed):
        metrics.append(all_metrics(chunk, train_counts, settings))
        cells.append(cell_accuracies(chunk))
    intervals = {}
    for name in metrics[0]:
        low, high = percentile_interval(np.concatenate([part[name] for part in metrics]), settings.confidence)
        intervals[name] = (float(low), float(high))
    return intervals, percentile_interval(np.concatenate(cells), settings.confidence)


def _notes(counts: np.ndarray, unknown: int, names: LabelSpace) -> list[str]:
    empty = [names.cell(int(label), int(group)) for label, group in np.argwhere(counts == 0)]
    notes = []
    if empty:
        listed = ", ".join(empty[:8]) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        notes.append(f"no test images of {listed}: left out of all metrics per cell")
    if unknown:
        notes.append(f"{unknown} test images of unknown group count in accuracy and per class only")
    return notes


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def summarize(
    rows: Iterable[Mapping[str, Any]], metrics: Iterable[str], confidence: float = 0.95
) -> dict[str, dict[str, Estimate]]:
    """Return the table method → metric → mean over seeds, with Student's t interval from two seeds on.

    Args:
        rows: Results, each with ``method`` and metrics; a metric that a row lacks, or that is None, is skipped.
        metrics: Names of the metrics.
        confidence: Confidence of the intervals.
    """
    rows, metrics = list(rows), list(metrics)
    table: dict[str, dict[str, Estimate]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        columns = {metric: [row[metric] for row in of_method if row.get(metric) is not None] for metric in metrics}
        table[method] = {metric: _estimate(values, confidence) for metric, values in columns.items() if values}
    return table


def _estimate(values: Sequence[int | float], confidence: float) -> Estimate:
    low, high = t_interval(values, confidence) or (None, None)
    return Estimate(float(np.mean(values)), low, high, len(values))
