"""Suites: methods × seeds on one dataset."""

from __future__ import annotations

from collections.abc import Sequence

from counterpoise.config import Experiment


def baseline(experiments: Sequence[Experiment]) -> str | None:
    """The method to compare with: of those that train on real images alone the first, plain ones before others."""
    real = [experiment for experiment in experiments if not experiment.plans]
    return next((experiment.method for experiment in (*filter(is_plain, real), *real)), None)


def is_plain(experiment: Experiment) -> bool:
    """Whether this is ERM on the real images: all of them, all alike, the mean of their cross-entropies."""
    return not experiment.plans and all(stage.data == ["real"] and stage.plain for stage in experiment.stages)
