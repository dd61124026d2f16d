"""Estimates of a metric: the mean over seeds and the bounds of its confidence interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """Mean of a metric over a method's seeds, with its confidence interval.

    Attributes:
        mean: The mean.
        low: Lower end of the interval; None if the noise is unknown, as with one seed.
        high: Upper end; None if ``low`` is.
        seeds: Number of seeds that have the metric.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Both ends of the interval; None without one."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval; None without one."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def scaled(self, factor: int | float) -> Estimate:
        """Return the estimate of the metric times a positive factor, such as 100 for percent."""
        low, high = (None, None) if self.bounds is None else (factor * end for end in self.bounds)
        return Estimate(factor * self.mean, low, high, self.seeds)

    def to_json(self) -> list[float | None]:
        """Return [mean, low, high]."""
        return [self.mean, self.low, self.high]


def table_to_json(table: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, list[float | None]]]:
    """Return a table method → metric → estimate with each estimate as [mean, low, high]."""
    return {method: {name: found.to_json() for name, found in metrics.items()} for method, metrics in table.items()}
