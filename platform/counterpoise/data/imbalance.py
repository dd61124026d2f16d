"""Imposed imbalance: biased, long-tailed, or with given counts. Pure functions on labels.

Every row has a priority drawn from the seed, and a cell that keeps n rows keeps the n of highest priority. Settings are
therefore nested: a more severe one keeps a subset of the rows of a milder one with the same seed. Training and
validation rows are thinned, test rows never. Validation keeps at least :data:`LEAST` rows of each cell that has as
many, as FFR's splits do, so that a model can be selected by its worst cell.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Int, Shaped

from counterpoise import config
from counterpoise.core.rng import Data, stream
from counterpoise.errors import DataError, did_you_mean, one_of
from counterpoise.storage.schema import LabelSpace, cell_counts

LEAST = 10
_KEY = "data.imbalance"


def keep(
    rule: config.Imbalance,
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    splits: Shaped[np.ndarray, " n"],
    names: LabelSpace,
    seed: int,
) -> Int[np.ndarray, " m"]:
    """Return the rows that remain under a rule, in their order.

    Under a rule for cells, training and validation rows of unknown group are left out.

    Args:
        rule: The imbalance to impose.
        labels: Class codes.
        groups: Group codes; -1 is unknown.
        splits: train, validation or test.
        names: Names of the codes.
        seed: Seed of the rows' priorities.

    Raises:
        DataError: The rule names unknown classes or groups, or needs more training rows than there are.
    """
    order = np.argsort(stream(seed, Data.IMBALANCE).random(len(labels)), kind="stable")
    kept = [np.flatnonzero(splits == "test")]
    available = {
        part: cell_counts(labels[splits == part], groups[splits == part], names) for part in ("train", "validation")
    }
    for part, wanted in _quotas(rule, available, labels, splits, names).items():
        rows = order[splits[order] == part]
        for label, quota in enumerate(wanted):
            of_class = rows[labels[rows] == label]
            if isinstance(quota, int):
                kept.append(of_class[:quota])
            else:
                group_of = np.maximum(groups[of_class], 0) if not names.groups else groups[of_class]
                kept += [of_class[group_of == group][:count] for group, count in enumerate(quota)]
    return np.sort(np.concatenate(kept))


Quotas = list[int | list[int]]  # for each class a number of rows, or one for each of its groups


def _quotas(
    rule: config.Imbalance,
    available: dict[str, Int[np.ndarray, "classes groups"]],
    labels: Int[np.ndarray, " n"],
    splits: Shaped[np.ndarray, " n"],
    names: LabelSpace,
) -> dict[str, Quotas]:
    totals = {part: np.bincount(labels[splits == part], minlength=len(names.classes)) for part in available}
    if isinstance(rule, config.Biased):
        return {
            "train": biased(available["train"], rule, names),
            "validation": _biased_validation(available["validation"], rule, names),
        }
    asked: Quotas
    if isinstance(rule, config.LongTailed):
        asked = [*long_tailed(totals["train"], rule, names)]
    else:
        asked = custom(rule, totals["train"], available["train"], names)
    return {"train": asked, "validation": _in_proportion(asked, totals, available)}


# -- biased ------------------------------------------------------------------------------------------------------------


def minority_size(majority: int, rate: float) -> int:
    """Return the number of minority rows that gives ``majority`` rows the share ``rate``: ⌈maj · (1 - r) / r⌉.

    FFR (ECCV 2024), section 4: "dropping samples appropriately from the minority groups to match the target bias
    ratio". Rounded up, like the authors' published splits, so that no minority is empty.
    """
    share = Fraction(str(rate))
    return math.ceil(majority * (1 - share) / share)


def biased(available: Int[np.ndarray, "classes groups"], rule: config.Biased, names: LabelSpace) -> Quotas:
    """Compute the training rows of each cell: the majority's, and FFR's minority share over the other groups.

    Args:
        available: Available rows.
        rule: ``rate`` is the majority's share; see :class:`counterpoise.config.Biased`.
        names: Names of classes and groups.

    Returns:
        A list over groups for each class. The remainder of an even division goes to the first minorities, cyclically
        after the majority.

    Raises:
        DataError: There is one group or none, a majority has too few rows, or a minority has fewer than the rate needs.
    """
    majorities = _majorities(rule, names)
    quotas: Quotas = []
    for label, majority in enumerate(majorities):
        have = int(available[label, majority])
        if have < (rule.per_class or 1):
            raise DataError(
                f"the majority cell {names.cell(label, majority)} has too few training images",
                where=f"{_KEY}.per_class" if rule.per_class else f"{_KEY}.majority.{names.classes[label]}",
                found=f"{have} images",
                allowed=f"at least {rule.per_class or 1}",
                remedy="lower data.imbalance.per_class" if have else "name another group in data.imbalance.majority",
            )
        quota = _cells(rule.per_class or have, majority, rule.rate, len(names.groups), 0)
        for group, count in enumerate(quota):
            if count > available[label, group]:
                raise _too_mild(available[label], majority, rule.rate, label, group, count, names)
        quotas.append(quota)
    return quotas


def _biased_validation(available: Int[np.ndarray, "classes groups"], rule: config.Biased, names: LabelSpace) -> Quotas:
    wanted = (
        _cells(int(available[label, majority]), majority, rule.rate, len(names.groups), LEAST)
        for label, majority in enumerate(_majorities(rule, names))
    )
    return [[min(n, int(have)) for n, have in zip(row, available[i], strict=True)] for i, row in enumerate(wanted)]


def _cells(size: int, majority: int, rate: float, groups: int, least: int) -> list[int]:
    """Return the rows of each group of a class whose majority has ``size`` rows."""
    minority = minority_size(size, rate)
    counts = [0] * groups
    counts[majority] = size
    for offset in range(groups - 1):
        counts[(majority + 1 + offset) % groups] = max(-((offset - minority) // (groups - 1)), least)
    return counts


def _too_mild(
    available: Int[np.ndarray, " groups"],
    majority: int,
    rate: float,
    label: int,
    group: int,
    count: int,
    names: LabelSpace,
) -> DataError:
    have, others = int(available[group]), len(available) - 1
    largest = int(Fraction(str(rate)) / (1 - Fraction(str(rate))) * have * others)
    return DataError(
        f"class {names.classes[label]!r} is already more biased than a rate of {rate:g}",
        where=f"{_KEY}.rate",
        found=f"{have} training images of {names.cell(label, group)} and {available[majority]} of the majority "
        f"group {names.groups[majority]!r}; the rate needs {count}",
        remedy=f"raise data.imbalance.rate, or set data.imbalance.per_class to at most {largest}"
        if largest
        else f"{names.groups[group]!r} does not occur in this class: leave it out with data.groups",
    )


def _majorities(rule: config.Biased, names: LabelSpace) -> list[int]:
    if len(names.groups) < 2:
        found = f"{len(names.groups)} groups"
        remedy = "name a group column (or data.tint), or use data.imbalance.kind=long_tailed"
        raise DataError("a biased dataset needs at least two groups", where=_KEY, found=found, remedy=remedy)
    if rule.majority is None:
        return [label % len(names.groups) for label in range(len(names.classes))]
    for label, group in rule.majority.items():
        known(label, names.classes, "class", f"{_KEY}.majority")
        known(group, names.groups, "group", f"{_KEY}.majority.{label}")
    if missing := [name for name in names.classes if name not in rule.majority]:
        raise DataError("majority group missing for some classes", where=f"{_KEY}.majority", found=one_of(missing))
    return [names.groups.index(rule.majority[name]) for name in names.classes]


# -- long-tailed -------------------------------------------------------------------------------------------------------


def long_tailed(available: Int[np.ndarray, " classes"], rule: config.LongTailed, names: LabelSpace) -> list[int]:
    """Compute the training rows of each class: n_i = ⌊n_max · factor^(-i / (C - 1))⌋, as in CIFAR-LT.

    The rule is Cui et al.'s (CVPR 2019), and that of SYNAuG's experiments. n_max is ``rule.largest``, by default the
    size of the smallest class. Rows are drawn at random across groups.

    Raises:
        DataError: There is one class, or a class has too few rows.
    """
    if len(names.classes) < 2:
        raise DataError("a long tail needs at least two classes", where=_KEY, found=one_of(names.classes))
    counts = _tail(rule.largest or int(available.min()), rule.factor, len(names.classes))
    for label, count in enumerate(counts):
        if count > available[label]:
            raise DataError(
                f"class {names.classes[label]!r} has too few training images",
                where=f"{_KEY}.largest" if rule.largest else _KEY,
                found=f"{available[label]} images",
                allowed=f"at least {count}, its place in a tail that starts with {counts[0]}",
                remedy="lower data.imbalance.largest, or order data.classes from large to small",
            )
        if count == 0:
            raise DataError(
                f"class {names.classes[label]!r} would keep no training image",
                where=f"{_KEY}.factor",
                found=f"{rule.factor:g} with {counts[0]} images in the largest class",
                allowed=f"a factor of at most {counts[0]}",
            )
    return counts


def _tail(largest: int, factor: float, classes: int) -> list[int]:
    # rounded first: floating-point powers may be slightly below the exact integer
    return [math.floor(round(largest * factor ** (-i / (classes - 1)), 9)) for i in range(classes)]


# -- counts ------------------------------------------------------------------------------------------------------------


def custom(
    rule: config.Counts,
    totals: Int[np.ndarray, " classes"],
    available: Int[np.ndarray, "classes groups"],
    names: LabelSpace,
) -> Quotas:
    """Compute the training rows by the given counts. Classes and groups that are not named keep all rows.

    Raises:
        DataError: A class or group is unknown, or has fewer rows than requested.
    """
    quotas: Quotas = [int(total) for total in totals]
    for name, count in rule.counts.items():
        where = f"{_KEY}.counts.{name}"
        label = known(name, names.classes, "class", f"{_KEY}.counts")
        if isinstance(count, int):
            _enough(count, int(totals[label]), where)
            quotas[label] = count
            continue
        cells = [int(have) for have in available[label]]
        for group_name, group_count in count.items():
            group = known(group_name, names.groups, "group", where)
            _enough(group_count, cells[group], f"{where}.{group_name}")
            cells[group] = group_count
        quotas[label] = cells
    return quotas


def _enough(count: int, have: int, where: str) -> None:
    if count > have:
        raise DataError("more images requested than available", where=where, found=count, allowed=f"at most {have}")


def _in_proportion(
    asked: Quotas,
    totals: dict[str, Int[np.ndarray, " classes"]],
    available: dict[str, Int[np.ndarray, "classes groups"]],
) -> Quotas:
    """Compute the validation rows: of each class or cell the share that training keeps."""

    def part(count: int, of: int, have: int) -> int:
        return min(have, max(LEAST, round(have * count / max(of, 1))))

    columns = (totals["train"], totals["validation"], available["train"], available["validation"])
    return [
        part(quota, of, have)
        if isinstance(quota, int)
        else [part(*cell) for cell in zip(quota, of_cells, have_cells, strict=True)]
        for quota, of, have, of_cells, have_cells in zip(asked, *(column.tolist() for column in columns), strict=True)
    ]


def known(name: str, names: tuple[str, ...], kind: str, where: str) -> int:
    """Return the code of a class or group name. Raises DataError if there is no such name."""
    if name not in names:
        allowed = one_of(names) or f"this dataset has no {kind}s"
        raise DataError(f"unknown {kind}", where=where, found=name, allowed=allowed, remedy=did_you_mean(name, names))
    return names.index(name)
