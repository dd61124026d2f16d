"""Selection of a dataset's rows: codes and splits of the selected rows, defects of the others.

Nothing here reads an image.
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
    """Selected rows in source order, and the rows with defects.

    Attributes:
        names: Names of classes and groups.
        rows: Row indices in the source.
        labels: Class codes.
        groups: Group codes; -1 is unknown.
        splits: train, validation or test.
        defects: Source row -> reason for its quarantine.
    """

    names: LabelSpace
    rows: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    splits: Shaped[np.ndarray, " n"]
    defects: dict[int, str]


def choose(rows: Rows, data: config.Data) -> SelectedRows:
    """Apply ``rows``, ``classes``, ``groups``, ``splits`` and ``tint`` of the configuration, in that order.

    Rows of classes or groups that the configuration does not list are left out. Rows without a label or with an
    unknown split are defects and are quarantined. Rows of unknown group are selected as group -1.

    Raises:
        DataError: The configuration names unknown classes or groups, ids repeat, or a split is empty.
    """
    splits = None if rows.splits is None else [name and split_name(name) for name in rows.splits]
    taken = _slice(len(rows.ids), splits, data.rows)
    defects = {row: why for row in taken if (why := _defect(rows, splits, row))}
    sound = [row for row in taken if row not in defects]
    if not sound:
        counted = one_of(f"{count} × {why}" for why, count in Counter(defects.values()).most_common(5))
        raise DataError("the dataset has no usable row", where="data", found=counted or "no rows")
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
    """Return the training rows within ``data.rows`` (without splits, all rows are training rows) and all other rows."""
    if text is None:
        return list(range(size))
    training = [row for row in range(size) if splits is None or splits[row] == "train"]
    remaining = training[slice(*(int(bound) if bound else None for bound in text.split(":")))]
    if not remaining:
        found = f"{text} of {len(training)} training rows"
        raise DataError("the slice contains no training row", where="data.rows", found=found, remedy="start:stop:step")
    return sorted({*range(size)} - {*training} | {*remaining})


def _groups(rows: Rows, sound: Sequence[int], data: config.Data) -> tuple[str, ...]:
    if data.tint is not None:
        if rows.groups is not None:
            raise DataError(
                "groups come either from a tint or from the dataset",
                where="data.tint",
                found="a dataset with groups",
                remedy="leave out data.tint, or the key that names the group",
            )
        return tuple(data.tint.colors)
    if rows.groups is not None:
        return _order("groups", (rows.groups[row] for row in sound), data.groups, rows.group_order)
    if data.groups is not None:
        raise DataError(
            "the dataset has no groups",
            where="data.groups",
            found=one_of(data.groups),
            remedy="name them by data.columns.group, {group} in data.layout, or data.group",
        )
    return ()


def _codes(values: Sequence[str | None], names: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    code: dict[str | None, int] = {name: index for index, name in enumerate(names)}
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
    """Return names in the order of the configuration, else the dataset's, else sorted (digits as numbers)."""
    present = {value for value in values if value is not None}
    listed = sorted(present, key=lambda name: (0, int(name), name) if name.lstrip("-").isdecimal() else (1, 0, name))
    if wanted is None:
        return tuple(name for name in natural if name in present) if natural is not None else tuple(listed)
    for name in wanted:
        if name not in present:
            raise DataError(
                f"no image of this {'class' if key == 'classes' else 'group'}",
                where=f"data.{key}",
                found=name,
                allowed=one_of(listed, 40) or "this dataset has none",
                remedy=did_you_mean(name, listed),
            )
    return tuple(wanted)


def _unique(rows: Rows, sound: Sequence[int]) -> None:
    counts = Counter(rows.ids[row] for row in sound)
    examples = [name for name, count in counts.most_common(3) if count > 1]
    if examples:
        repeated = sum(count > 1 for count in counts.values())
        raise DataError(
            "duplicate ids",
            where="data.columns.id",
            found=f"{repeated} ids more than once: {one_of(repr(name) for name in examples)}",
            allowed="unique ids (by default the paths of the images)",
            remedy="remove the duplicate rows, or set data.columns.id to a column with unique ids",
        )
