"""From a dataset's rows by name to the rows that are taken: their codes, their splits, and what is wrong with the rest.

Everything here happens before an image is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from counterpoise import config
from counterpoise.data.adapters.source import Rows, split_name
from counterpoise.data.splits import draw_splits, draw_tints
from counterpoise.errors import DataError, did_you_mean, one_of
from counterpoise.storage.schema import LabelSpace


@dataclass(frozen=True)
class SelectedRows:
    """The rows to take, in source order, and the rows that cannot be taken.

    Attributes:
        names: Names of classes and groups.
        rows: Row numbers in the source.
        labels: Class codes.
        groups: Group codes; -1 is unknown.
        splits: train, validation or test.
        defects: Source row -> why it is quarantined.
    """

    names: LabelSpace
    rows: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    splits: Shaped[np.ndarray, " n"]
    defects: dict[int, str]


def choose(rows: Rows, data: config.Data) -> SelectedRows:
    """Applies ``rows``, ``classes``, ``groups``, ``splits`` and ``tint`` of the configuration, in that order.

    Rows of classes or groups that the configuration does not list are not taken; that is a choice. Rows without a
    label or with a strange split are quarantined; that is a defect. Rows of unknown group are taken as group -1.

    Raises:
        DataError: The configuration names classes or groups that are not there, ids repeat, or a split is empty.
    """
    splits = None if rows.splits is None else [name and split_name(name) for name in rows.splits]
    taken = _slice(len(rows.ids), splits, data.rows)
    defects = {row: why for row in taken if (why := _defect(rows, splits, row))}
    sound = [row for row in taken if row not in defects]
    if not sound:
        counted = one_of(f"{count} × {why}" for why, count in Counter(defects.values()).most_common(5))
        raise DataError("no row of this dataset can be used", where="data", found=counted or "no rows")
    classes = _order("classes", (rows.labels[row] for row in sound), data.classes, rows.classes)
    of_class = set(classes)
    sound = [row for row in sound if rows.labels[row] in of_class]
    groups = _groups(rows, sound, data)
    if data.tint is None and rows.groups is not None:
        of_group = {None, *groups}
        sound = [row for row in sound if rows.groups[row] in of_group]
    _unique(rows, sound)
    labels = _codes([rows.labels[row] for row in sound], classes)
    codes = _codes([rows.groups[row] if rows.groups is not None else None for row in sound], groups)
    given = None if splits is None else np.array([splits[row] for row in sound], dtype=object)
    parts = draw_splits(labels, codes, given, data.splits, data.seed)
    if data.tint is not None:
        codes = draw_tints(labels, parts, len(groups), data.seed)
    return SelectedRows(LabelSpace(classes, groups), np.array(sound, dtype=np.int64), labels, codes, parts, defects)


def _slice(size: int, splits: Sequence[str | None] | None, text: str | None) -> list[int]:
    """The training rows that ``data.rows`` leaves (all rows count as such without splits), and all other rows."""
    if text is None:
        return list(range(size))
    training = [row for row in range(size) if splits is None or splits[row] == "train"]
    left = training[slice(*(int(bound) if bound else None for bound in text.split(":")))]
    if not left:
        found = f"{text} of {len(training)} training rows"
        raise DataError("this slice leaves no training row", where="data.rows", found=found, remedy="start:stop:step")
    return sorted({*range(size)} - {*training} | {*left})


def _groups(rows: Rows, sound: Sequence[int], data: config.Data) -> tuple[str, ...]:
    if data.tint is not None:
        if rows.groups is not None:
            raise DataError(
                "groups come from a tint or from the dataset, not from both",
                where="data.tint",
                found="a dataset with groups",
                remedy="leave out data.tint, or what names the group",
            )
        return tuple(data.tint.colors)
    if rows.groups is not None:
        return _order("groups", (rows.groups[row] for row in sound), data.groups, rows.group_order)
    if data.groups is not None:
        raise DataError(
            "this dataset has no groups",
            where="data.groups",
            found=one_of(data.groups),
            remedy="say where they are: data.columns.group, {group} in data.layout, or data.group",
        )
    return ()


def _codes(values: Sequence[str | None], names: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    code: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    return np.array([code.get(value, -1) for value in values], dtype=np.int32)


def _defect(rows: Rows, splits: Sequence[str | None] | None, row: int) -> str | None:
    if row in rows.defects:
        return rows.defects[row]
    if rows.labels[row] is None:
        return "no label"
    if splits is not None and rows.splits is not None and splits[row] is None:
        return "no split" if rows.splits[row] is None else f"unknown split {rows.splits[row]!r}"
    return None


def _order(
    key: str, values: Iterable[str | None], wanted: Sequence[str] | None, natural: Sequence[str] | None
) -> tuple[str, ...]:
    """Names in the order of the configuration, else the dataset's own, else sorted (digits as numbers)."""
    there = {value for value in values if value is not None}
    listed = sorted(there, key=lambda name: (0, int(name), name) if name.lstrip("-").isdecimal() else (1, 0, name))
    if wanted is None:
        return tuple(name for name in natural if name in there) if natural is not None else tuple(listed)
    for name in wanted:
        if name not in there:
            raise DataError(
                f"no image is of this {'class' if key == 'classes' else 'group'}",
                where=f"data.{key}",
                found=name,
                allowed=one_of(listed, 40) or "this dataset has none",
                remedy=did_you_mean(name, listed),
            )
    return tuple(wanted)


def _unique(rows: Rows, sound: Sequence[int]) -> None:
    seen = Counter(rows.ids[row] for row in sound)
    twice = [name for name, count in seen.most_common(3) if count > 1]
    if twice:
        repeated = sum(count > 1 for count in seen.values())
        raise DataError(
            "ids repeat",
            where="data.columns.id",
            found=f"{repeated} ids more than once: {one_of(repr(name) for name in twice)}",
            allowed="one row for each id (the image's path, if no column of ids is named)",
            remedy="remove the repeated rows, or name a column with unique ids as data.columns.id",
        )
