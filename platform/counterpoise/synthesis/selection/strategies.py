"""Strategies: pure functions from the real counts of cells to the wanted numbers of synthetic images.

- ``uniformize`` by class: every class is filled up to the largest class (SYNAuG, section 3). By cell: within each
  group, every class is filled up to that group's largest class, as in SYNAuG's fairness experiments. Groups keep their
  different sizes, and a group without images stays empty.
- ``usb``, Uniform Synthetic Balancing: every cell is filled up to the largest cell (FFR, section 2).
- ``asb``, Additive Synthetic Balancing: the same number for every cell, in total at most USB's number. It is also the
  plan of FFR's first stage (FFR, section 4).
- ``balanced``: the same number for every cell, in total at most ``budget`` (``real``: the number of real images).
- ``biased``: ``budget`` images, divided evenly over the classes; of each, the share ``rate`` goes to the group that is
  the class's majority in the real data, and the rest is divided over the other groups (AIM-Fair, section 3).
- ``fill``: every class or cell is filled up to ``target``.
- ``custom``: ``counts``, by class or by class and group; none for classes and groups that are not named.

The images of a whole class go to the smallest of its groups first, which grow together, so that no group becomes rarer
in its class than necessary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from counterpoise import config
from counterpoise.config import plans
from counterpoise.errors import PlanError, did_you_mean, one_of
from counterpoise.storage.schema import LabelSpace


def target_counts(
    plan: config.Plan, counts: Int[np.ndarray, "classes groups"], names: LabelSpace, where: str = "plan"
) -> Int[np.ndarray, "classes groups"]:
    """Return the number of synthetic images to add to each cell.

    Args:
        plan: The strategy and its parameters.
        counts: Real training images of each cell; one column for a dataset without groups.
        names: Names of classes and groups.
        where: The plan's key path, for errors.

    Returns:
        Counts, all at least 0.

    Raises:
        PlanError: The plan names an unknown class or group, needs groups but there are none, or its budget is too
            small.
    """
    match plan:
        case plans.Uniformize():
            by_class = counts.sum(1, keepdims=True).max() - counts.sum(1)
            return _spread(by_class, counts) if plan.by == "class" else counts.max(0, keepdims=True) - counts
        case plans.Usb():
            return counts.max() - counts
        case plans.Asb():
            return _balanced(_usb_budget(counts), counts, where)
        case plans.Balanced():
            return _balanced(_budget(plan.budget, counts), counts, where)
        case plans.Biased():
            return _biased(_budget(plan.budget, counts), Fraction(str(plan.rate)), counts, names, where)
        case plans.Fill():
            short = np.maximum(plan.target - (counts.sum(1) if plan.by == "class" else counts), 0)
            return _spread(short, counts) if plan.by == "class" else short
        case plans.Custom():
            return _custom(plan.counts, counts, names, f"{where}.counts")


def check_held_out(experiment: config.Experiment, counts: Mapping[str, Int[np.ndarray, "classes groups"]]) -> None:
    """Raise PlanError unless a test plan takes other images than those that stages learn from.

    Args:
        experiment: The experiment; its plans, stages and evaluation apply.
        counts: Images wanted per cell, by plan.
    """
    test, given = experiment.evaluation.test, experiment.plans
    learned = {name for stage in experiment.stages for names in stage.views.values() for name in names}
    for name in sorted(learned & set(given)) if test in given else ():
        ends = [counts[plan] + given[plan].skip for plan in (test, name)]
        shared = np.minimum(*ends) - max(given[test].skip, given[name].skip)
        shared = np.where((counts[test] > 0) & (counts[name] > 0), shared, 0).clip(0)
        if shared.any():
            raise PlanError(
                "the test plan shares images with a training plan",
                where=f"plans.{test}.skip",
                found=f"{shared.sum()} images of {name!r}",
                remedy=f"skip at least {ends[1].max()} images, the most that {name!r} takes of a cell",
            )


def _usb_budget(counts: Int[np.ndarray, "classes groups"]) -> int:
    return int((counts.max() - counts).sum())


def _budget(budget: plans.Budget, counts: Int[np.ndarray, "classes groups"]) -> int:
    match budget:
        case "usb":
            return _usb_budget(counts)
        case "real":
            return int(counts.sum())
        case images:
            return images


def _balanced(budget: int, counts: Int[np.ndarray, "classes groups"], where: str) -> Int[np.ndarray, "classes groups"]:
    """Return budget // cells for each cell, as in FFR's code."""
    if budget < counts.size:
        raise PlanError(
            "the budget is too small for one image per cell",
            where=f"{where}.budget",
            found=f"{budget} images for {counts.size} cells",
            remedy=f"use strategy balanced with a budget of at least {counts.size}; USB's budget is the number of "
            "images that the real data lack, and balanced data lack none",
        )
    return np.full_like(counts, budget // counts.size)


def _biased(
    budget: int, rate: Fraction, counts: Int[np.ndarray, "classes groups"], names: LabelSpace, where: str
) -> Int[np.ndarray, "classes groups"]:
    classes, groups = counts.shape
    if groups < 2:
        remedy = "use another strategy, or a dataset with groups"
        raise PlanError("a biased plan needs groups", where=f"{where}.strategy", found="no groups", remedy=remedy)
    if budget < classes:
        remedy = f"set a budget of at least {classes}"
        raise PlanError(
            "the budget is too small for one image per class", where=f"{where}.budget", found=budget, remedy=remedy
        )
    size = budget // classes
    majority_size = math.floor(rate * size + Fraction(1, 2))
    result = np.zeros_like(counts)
    for label, row in enumerate(counts):
        first, second = np.sort(row)[::-1][:2]
        if first == second:
            raise PlanError(
                f"class {names.classes[label]!r} has no majority group to mirror",
                where=f"{where}.strategy",
                found=", ".join(f"{name}: {count}" for name, count in zip(names.groups, row, strict=True)),
                remedy="use strategy custom and give the counts",
            )
        majority = int(row.argmax())
        result[label, majority] = majority_size
        others = [group for group in range(groups) if group != majority]
        result[label, others] = _spread(np.array([size - majority_size]), np.zeros((1, len(others)), counts.dtype))[0]
    return result


def _spread(
    amounts: Int[np.ndarray, " classes"], counts: Int[np.ndarray, "classes groups"]
) -> Int[np.ndarray, "classes groups"]:
    """Divide each class's amount over its groups, the smallest first, so that the sums are as even as possible."""
    result = np.zeros_like(counts)
    for label, (amount, row) in enumerate(zip(amounts, counts, strict=True)):
        order = np.argsort(row, kind="stable")
        ascending = row[order]
        # images needed to raise the k smallest to the level of the k-th; grows with k
        cost = np.arange(1, len(row) + 1) * ascending - np.cumsum(ascending)
        raised = int(np.searchsorted(cost, amount, side="right"))
        level, remainder = divmod(int(amount - cost[raised - 1]), raised)
        heights = ascending[raised - 1] + level + (np.arange(raised) < remainder)
        result[label, order[:raised]] = heights - ascending[:raised]
    return result


def _custom(
    given: dict[str, int | dict[str, int]], counts: Int[np.ndarray, "classes groups"], names: LabelSpace, where: str
) -> Int[np.ndarray, "classes groups"]:
    result = np.zeros_like(counts)
    for class_name, amount in given.items():
        label = _known(class_name, names.classes, "class", where)
        if isinstance(amount, int):
            result[label] = _spread(np.array([amount]), counts[label : label + 1])[0]
            continue
        for group_name, number in amount.items():
            result[label, _known(group_name, names.groups, "group", f"{where}.{class_name}")] = number
    return result


def _known(name: str, names: tuple[str, ...], kind: str, where: str) -> int:
    if name not in names:
        allowed = one_of(names) or f"this dataset has no {kind}s"
        raise PlanError(f"unknown {kind}", where=where, found=name, allowed=allowed, remedy=did_you_mean(name, names))
    return names.index(name)
