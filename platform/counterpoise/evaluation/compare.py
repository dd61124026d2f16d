"""Comparison of methods: the table of means, its ranking, and paired tests of differences over seeds.

Methods are compared on the same seeds and the same splits, so the evidence is in the *differences* per seed: effects
of an initialisation that are common to all methods cancel. The mean difference has Student's t interval and the p
value of the paired t test. If several methods are compared with one, their p values are corrected by Holm's method,
so that the chance of any false difference stays below 1 - confidence.

Rows are mappings with ``method``, ``seed``, metrics by name, and for one seed ``intervals`` of the test images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from counterpoise.evaluation.catalogue import metric as entry_of
from counterpoise.evaluation.estimate import Estimate
from counterpoise.evaluation.intervals import t_interval
from counterpoise.evaluation.scores import summarize

Row = Mapping[str, Any]
Outcome = Literal["better", "worse", "not shown"]

_EQUAL = 1e-12  # differences up to here are rounding


def table(rows: Iterable[Row], metrics: Iterable[str], confidence: float) -> dict[str, dict[str, Estimate]]:
    """Return the table method → metric → mean and interval.

    The interval is Student's t over seeds. With one seed it is the row's entry in ``intervals`` (resampled test
    images, without the variation between seeds), or none. Intervals of rates are clipped to [0, 1].
    """
    rows = list(rows)
    intervals = {row["method"]: row.get("intervals", {}) for row in rows}
    return {
        method: {name: _bounded(name, estimate, intervals[method].get(name)) for name, estimate in estimates.items()}
        for method, estimates in summarize(rows, metrics, confidence).items()
    }


def _bounded(metric: str, estimate: Estimate, of_images: Sequence[float] | None) -> Estimate:
    bounds = estimate.bounds or (of_images if estimate.seeds == 1 else None)
    if bounds is None:
        return estimate
    low, high = bounds
    return replace(estimate, low=max(low, 0.0), high=high if entry_of(metric).is_cost else min(high, 1.0))


def ranks(means: Mapping[str, Mapping[str, Estimate]], metric: str) -> dict[str, int | None]:
    """Rank methods by their means, from 1, in the order of the ranks.

    Methods of equal means share a rank and the next one is skipped (1, 2, 2, 4); they stay in the given order.
    Methods without the metric come last and have no rank.
    """
    sign = -1 if entry_of(metric).higher_is_better else 1
    values = {method: sign * row[metric].mean for method, row in means.items() if metric in row}
    placed: dict[str, int | None] = {
        method: 1 + sum(other < value - _EQUAL for other in values.values())
        for method, value in sorted(values.items(), key=lambda item: item[1])
    }
    return placed | {method: None for method in means if method not in values}


@dataclass(frozen=True)
class Difference:
    """Difference of a method from another one, on the seeds that both have.

    Attributes:
        method: Name of the method.
        other: Name of the method that it is compared with.
        metric: Name of the metric.
        seeds: Number of common seeds.
        mean: Mean of method - other over these seeds.
        low: Lower end of the interval of this difference alone; None without one (see :func:`differences`).
        high: Upper end of the interval.
        p: Two-sided p value of the paired t test; None without one.
        corrected: The p value after Holm's correction over all methods compared with ``other``.
        outcome: better or worse, in the metric's direction, if ``corrected`` ≤ 1 - confidence; else not shown: these
            seeds show no difference, which is not the same as no difference.
    """

    method: str
    other: str
    metric: str
    seeds: int
    mean: float
    low: float | None
    high: float | None
    p: float | None
    corrected: float | None
    outcome: Outcome


def differences(
    rows: Iterable[Row], methods: Sequence[str], other: str, metric: str, confidence: float
) -> list[Difference]:
    """Compare each of ``methods`` with ``other``; those that share no seed with it, or lack the metric, are left out.

    With one seed there is neither interval nor p value. The same holds if all differences are equal, as happens with
    coarse metrics of few test images: without a spread the noise is unknown, and no difference is claimed.
    """
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.get(metric) is not None:
            values.setdefault(row["method"], {})[row["seed"]] = row[metric]
    paired = {m: _paired(values[m], values[other]) for m in methods if m != other and {m, other} <= values.keys()}
    paired = {method: per_seed for method, per_seed in paired.items() if len(per_seed)}
    raw = {method: _p_value(per_seed) for method, per_seed in paired.items()}
    corrected = dict(zip(raw, holm([1.0 if p is None else p for p in raw.values()]), strict=True))
    return [
        _difference(method, other, metric, per_seed, raw[method], corrected[method], confidence)
        for method, per_seed in paired.items()
    ]


def _difference(
    method: str, other: str, metric: str, per_seed: np.ndarray, p: float | None, corrected: float, confidence: float
) -> Difference:
    mean = float(per_seed.mean())
    low, high = (None, None) if p is None else t_interval(per_seed.tolist(), confidence) or (None, None)
    outcome: Outcome = "not shown"
    higher_is_better = entry_of(metric).higher_is_better
    if p is not None and corrected <= 1 - confidence and higher_is_better is not None:
        outcome = "better" if (mean > 0) == higher_is_better else "worse"
    adjusted = None if p is None else corrected
    return Difference(method, other, metric, len(per_seed), mean, low, high, p, adjusted, outcome)


def _paired(one: Mapping[int, float], two: Mapping[int, float]) -> np.ndarray:
    return np.array([one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())])


def _p_value(per_seed: np.ndarray) -> float | None:
    """Return the two-sided p value of a mean difference of 0 (Student's t); None without a spread."""
    if len(per_seed) < 2 or np.ptp(per_seed) <= _EQUAL:
        return None
    t = per_seed.mean() / (per_seed.std(ddof=1) / np.sqrt(len(per_seed)))
    from scipy.special import stdtr  # the distribution of scipy.stats, which takes most of a second to import

    return float(2 * stdtr(len(per_seed) - 1, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values by Holm's step-down correction (Holm 1979), in the given order.

    The k-th smallest of n is multiplied by n - k + 1, made no smaller than those before it, and capped at 1. Rejecting
    those up to α keeps the chance of any false rejection at α, under any dependence of the tests.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(largest, 1.0)
    return adjusted
