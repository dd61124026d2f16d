"""Methods against each other: the table of means, its ranking, and which differences the seeds can show.

Methods are compared on the same seeds and the same splits, so the evidence is in the *differences* seed by seed: what
a lucky initialisation does to all methods alike cancels. The mean difference has Student's t interval, and the p value
of the paired t test; where several methods are held against one, their p values are corrected by Holm's method, so
that the chance to call any of them different by accident stays below 1 - confidence.

Rows are mappings with ``method``, ``seed``, metrics by name, and for one seed ``intervals`` of the test images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from counterpoise.evaluation.catalogue import metric as entry_of
from counterpoise.evaluation.intervals import t_interval
from counterpoise.evaluation.scores import Summary, summarize

Row = Mapping[str, Any]
Interval = tuple[float, float | None, float | None]  # mean, low, high; no bounds where nothing is known of the noise
Outcome = Literal["better", "worse", "not shown"]

_EQUAL = 1e-12  # differences up to here are rounding


def table(rows: Iterable[Row], metrics: Iterable[str], confidence: float) -> dict[str, dict[str, Interval]]:
    """Method → metric → mean and interval.

    The interval is Student's t over seeds. With one seed it is what the row has in ``intervals`` (resampled test
    images: it knows nothing of other seeds), or nothing. Intervals of rates are cut to [0, 1]: t does not know it.
    """
    rows = list(rows)
    intervals = {row["method"]: row.get("intervals", {}) for row in rows}
    return {
        method: {name: _bounded(name, found, intervals[method].get(name)) for name, found in summaries.items()}
        for method, summaries in summarize(rows, metrics, confidence).items()
    }


def _bounded(metric: str, found: Summary, of_images: Sequence[float] | None) -> Interval:
    bounds = found.interval or (of_images if found.seeds == 1 else None)
    if bounds is None:
        return found.mean, None, None
    low, high = bounds
    return found.mean, max(low, 0.0), high if entry_of(metric).is_cost else min(high, 1.0)


def ranks(means: Mapping[str, Mapping[str, Interval]], metric: str) -> dict[str, int | None]:
    """The place of each method by its mean, from 1, in the order of the places.

    Methods of equal means share a place and the next one is left free (1, 2, 2, 4); they stay in the order given.
    Those without the metric come last and have no place.
    """
    sign = -1 if entry_of(metric).higher_is_better else 1
    values = {method: sign * row[metric][0] for method, row in means.items() if metric in row}
    placed: dict[str, int | None] = {
        method: 1 + sum(other < value - _EQUAL for other in values.values())
        for method, value in sorted(values.items(), key=lambda item: item[1])
    }
    return placed | {method: None for method in means if method not in values}


@dataclass(frozen=True)
class Difference:
    """What a method changes against another one, on the seeds that both have.

    Attributes:
        method: The one.
        other: The one that it is held against.
        metric: Of which metric.
        seeds: How many seeds both have.
        mean: Mean of method - other over these.
        low: Lower end of the interval of this one difference; None where there is none (see :func:`differences`).
        high: Its upper end.
        p: Two-sided p value of the paired t test; None where there is none.
        corrected: The same after Holm's correction over all methods held against ``other``.
        outcome: better or worse, in the metric's own direction, if ``corrected`` ≤ 1 - confidence; else not shown:
            no difference that these seeds can show, which is not the same as no difference.
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
    """Each of ``methods`` against ``other``; those that share no seed with it, or lack the metric, are left out.

    With one seed there is neither interval nor p value. Nor are there if all differences are equal: without a spread
    they say nothing about the noise (coarse metrics of few test images do that), and what is not shown is not claimed.
    """
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.get(metric) is not None:
            values.setdefault(row["method"], {})[row["seed"]] = row[metric]
    paired = {m: _paired(values[m], values[other]) for m in methods if m != other and {m, other} <= values.keys()}
    paired = {method: found for method, found in paired.items() if len(found)}
    raw = {method: _p_value(found) for method, found in paired.items()}
    corrected = dict(zip(raw, holm([1.0 if p is None else p for p in raw.values()]), strict=True))
    return [
        _difference(method, other, metric, found, raw[method], corrected[method], confidence)
        for method, found in paired.items()
    ]


def _difference(
    method: str, other: str, metric: str, found: np.ndarray, p: float | None, corrected: float, confidence: float
) -> Difference:
    mean = float(found.mean())
    low, high = (None, None) if p is None else t_interval(found.tolist(), confidence) or (None, None)
    outcome: Outcome = "not shown"
    higher_is_better = entry_of(metric).higher_is_better
    if p is not None and corrected <= 1 - confidence and higher_is_better is not None:
        outcome = "better" if (mean > 0) == higher_is_better else "worse"
    return Difference(method, other, metric, len(found), mean, low, high, p, None if p is None else corrected, outcome)


def _paired(one: Mapping[int, float], two: Mapping[int, float]) -> np.ndarray:
    return np.array([one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())])


def _p_value(found: np.ndarray) -> float | None:
    """Two-sided p value of "the mean of these is 0" (Student's t); None without a spread to judge by."""
    if len(found) < 2 or np.ptp(found) <= _EQUAL:
        return None
    t = found.mean() / (found.std(ddof=1) / np.sqrt(len(found)))
    return float(2 * stats.t.sf(abs(t), len(found) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): adjusted p values, in the order given.

    The k-th smallest of n is multiplied by n - k + 1, made no smaller than those before it, and cut at 1. To reject
    those up to α keeps the chance of any false rejection among them at α, whatever the tests' dependence.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - place) * p_values[number])
        adjusted[number] = min(largest, 1.0)
    return adjusted
