"""Catalogue of metrics: the only place that names them, with their titles, directions and use in selection.

:mod:`counterpoise.evaluation.metrics` computes them. A metric may be undefined for a set of images (see
``needs_groups``, and the classes of ``many``, ``medium`` and ``few``); its readers then show "–".
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Unit = Literal["rate", "gap", "count", "seconds"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Entry of the catalogue.

    Attributes:
        name: Key in results, files and options.
        title: Heading of a column.
        phrase: Name within a sentence.
        meaning: Definition in one sentence; empty for a metric that is not in the catalogue.
        higher_is_better: Direction; None for a metric that is not in the catalogue.
        unit: ``rate`` and ``gap`` (a difference or deviation of rates) lie in [0, 1] and are written in percent.
        needs_groups: True if undefined for images of unknown group. In a dataset without groups the cells are the
            classes, and metrics that compare groups are undefined.
        selectable: True if a stage's epoch may be selected by it (``training.select_by``).
        tie_breaker: Name of the metric that decides between epochs that are equal in this one.
    """

    name: str
    title: str
    phrase: str
    meaning: str
    higher_is_better: bool | None
    unit: Unit = "rate"
    needs_groups: bool = False
    selectable: bool = False
    tie_breaker: str | None = None

    @property
    def is_cost(self) -> bool:
        """True if the metric measures the cost of a method, not the quality of its classifier."""
        return self.unit in ("count", "seconds")


WORST_GROUP = Metric(
    name="worst_group_accuracy",
    title="worst group",
    phrase="worst-group accuracy",
    meaning="accuracy in the class × group cell where it is lowest",
    higher_is_better=True,
    needs_groups=True,
    selectable=True,
    tie_breaker="balanced_accuracy",
)
BALANCED = Metric(
    name="balanced_accuracy",
    title="balanced",
    phrase="balanced accuracy",
    meaning="mean of the cells' accuracies",
    higher_is_better=True,
    needs_groups=True,
    selectable=True,
    tie_breaker="worst_group_accuracy",
)
CLASS_MEAN = Metric(
    name="class_balanced_accuracy",
    title="class mean",
    phrase="mean class accuracy",
    meaning="mean of the classes' accuracies",
    higher_is_better=True,
    selectable=True,
)
OVERALL = Metric(
    name="accuracy",
    title="overall",
    phrase="overall accuracy",
    meaning="share of test images classified correctly",
    higher_is_better=True,
    selectable=True,
)
CELL_STD = Metric(
    name="group_std",
    title="cell std",
    phrase="standard deviation of the cells' accuracies",
    meaning="standard deviation of the cells' accuracies",
    higher_is_better=False,
    unit="gap",
    needs_groups=True,
)
DEMOGRAPHIC_PARITY = Metric(
    name="demographic_parity",
    title="dem. parity",
    phrase="demographic parity",
    meaning="gap between groups in how often a class is predicted",
    higher_is_better=False,
    unit="gap",
    needs_groups=True,
)
EQUAL_OPPORTUNITY = Metric(
    name="equal_opportunity",
    title="equal opp.",
    phrase="equal opportunity",
    meaning="gap between groups in the true positive rate",
    higher_is_better=False,
    unit="gap",
    needs_groups=True,
)
EQUALIZED_ODDS_MEAN = Metric(
    name="equalized_odds_mean",
    title="eq. odds mean",
    phrase="equalized odds mean",
    meaning="mean of the gaps in true and false positive rate",
    higher_is_better=False,
    unit="gap",
    needs_groups=True,
)
EQUALIZED_ODDS_MAX = Metric(
    name="equalized_odds_max",
    title="eq. odds max",
    phrase="equalized odds max",
    meaning="larger of the gaps in true and false positive rate",
    higher_is_better=False,
    unit="gap",
    needs_groups=True,
)
MANY = Metric(
    name="many",
    title="many",
    phrase="accuracy of the classes with many images",
    meaning="mean accuracy of the classes with many training images",
    higher_is_better=True,
)
MEDIUM = Metric(
    name="medium",
    title="medium",
    phrase="accuracy of the classes between many and few images",
    meaning="mean accuracy of the classes between many and few",
    higher_is_better=True,
)
FEW = Metric(
    name="few",
    title="few",
    phrase="accuracy of the classes with few images",
    meaning="mean accuracy of the classes with few training images",
    higher_is_better=True,
)
IMAGES_DRAWN = Metric(
    name="images_drawn",
    title="images sampled",
    phrase="images sampled",
    meaning="synthetic images sampled for the method, refused ones included",
    higher_is_better=False,
    unit="count",
)
DEVICE_TIME = Metric(
    name="accelerator_seconds",
    title="device time",
    phrase="device time",
    meaning="training, and sampling these images, added up over GPUs or CPU workers",
    higher_is_better=False,
    unit="seconds",
)

METRICS: Mapping[str, Metric] = {  # in reading order
    entry.name: entry
    for entry in (
        *(WORST_GROUP, BALANCED, CLASS_MEAN, OVERALL, CELL_STD),
        *(DEMOGRAPHIC_PARITY, EQUAL_OPPORTUNITY, EQUALIZED_ODDS_MEAN, EQUALIZED_ODDS_MAX),
        *(MANY, MEDIUM, FEW, IMAGES_DRAWN, DEVICE_TIME),
    )
}
COSTS = tuple(name for name, entry in METRICS.items() if entry.is_cost)

# Methods are judged by the first of these that is defined for the test images.
JUDGES = (WORST_GROUP.name, BALANCED.name, CLASS_MEAN.name, OVERALL.name)
PRIMARY = (WORST_GROUP.name, BALANCED.name)  # drawn as dots with intervals
AVERAGES = (BALANCED.name, OVERALL.name)  # metrics that may fall while the judging metric rises
IN_SHORT = (OVERALL.name, BALANCED.name, WORST_GROUP.name)  # the columns of a terminal's table
ON_LEADERBOARDS = (
    *IN_SHORT,
    *(EQUALIZED_ODDS_MEAN.name, EQUALIZED_ODDS_MAX.name, CELL_STD.name, MANY.name, MEDIUM.name, FEW.name),
)

_WITHOUT_GROUPS = {  # words of titles, phrases and meanings, longest first
    "class × group cell": "class",
    "worst-group": "worst-class",
    "worst group": "worst class",
    "cells": "classes",
    "cell": "class",
}


def metric(name: str, grouped: bool = True) -> Metric:
    """Return the entry of a metric; one outside the catalogue has its name as title, and no direction.

    Args:
        name: Name of the metric.
        grouped: True if the dataset has groups. Without them the texts say class instead of cell and group.
    """
    words = name.replace("_", " ")
    entry = METRICS.get(name) or Metric(name=name, title=words, phrase=words, meaning="", higher_is_better=None)
    if grouped:
        return entry
    return replace(
        entry,
        title=_without_groups(entry.title),
        phrase=_without_groups(entry.phrase),
        meaning=_without_groups(entry.meaning),
    )


def _without_groups(text: str) -> str:
    for word, plain in _WITHOUT_GROUPS.items():
        text = text.replace(word, plain)
    return text


def judge(defined: Container[str]) -> str:
    """Return the metric that judges: the first of :data:`JUDGES` that is defined, else the first of all."""
    return next((name for name in JUDGES if name in defined), JUDGES[0])


def selection_score(row: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Return the values to maximise in a selection by a metric: its own, then its tie-breaker's.

    Worst-group accuracy of a small validation set changes in large steps, so that ties are common.
    """
    return tuple(float(row[key]) for key in (name, metric(name).tie_breaker) if key is not None)
