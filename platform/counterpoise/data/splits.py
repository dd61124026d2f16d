"""Random splits and tints, drawn by seed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Shaped

from counterpoise import config
from counterpoise.core.rng import Data, stream
from counterpoise.errors import DataError, one_of
from counterpoise.storage.schema import SPLITS

_VALIDATION = 0.1  # share of the training rows, if the dataset has no validation split and `data.splits` is not set


def draw_splits(
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    given: Shaped[np.ndarray, " n"] | None,
    shares: config.Splits | None,
    seed: int,
) -> Shaped[np.ndarray, " n"]:
    """Return the split of each row; missing splits are drawn from the training rows by seed, within each cell.

    - No splits given: all three are drawn, by ``shares`` or 80 : 10 : 10.
    - Train and test given: the share ``shares.validation`` of the training rows (a tenth without ``shares``) becomes
      validation.
    - No test given: drawn only if ``shares`` is set, because the test set should be an explicit decision.
    - All three given: ``shares`` would have no effect and is an error.

    Raises:
        DataError: A split that is needed is missing or empty.
    """
    parts = np.full(len(labels), "train", dtype=object) if given is None else given.copy()
    given_splits = set(parts)
    if "train" not in given_splits:
        found = one_of(sorted(given_splits))
        raise DataError("there is no training split", where="data", found=found, remedy="name one of them train")
    if given is None:
        shares = shares or config.Splits()
    elif shares is not None and given_splits == set(SPLITS):
        remedy = "leave out data.splits; to draw new splits, do not name the dataset's (data.columns.split, {split})"
        raise DataError("the dataset already has all three splits", where="data.splits", remedy=remedy)
    elif shares is None and "test" not in given_splits:
        remedy = "set data.splits, for example {train: 0.8, validation: 0.1, test: 0.1}, to draw one"
        raise DataError("there is no test split", where="data", found=one_of(sorted(given_splits)), remedy=remedy)
    rng = stream(seed, Data.SPLITS)
    remaining = 1.0
    for part, share in (
        ("test", shares.test if shares else 0),
        ("validation", shares.validation if shares else _VALIDATION),
    ):
        if part not in given_splits:
            rows = np.flatnonzero(parts == "train")
            parts[rows[_stratified(labels[rows], groups[rows], share / remaining, rng)]] = part
            remaining -= share
    for part in SPLITS:
        if not np.any(parts == part):
            found = ", ".join(f"{np.sum(parts == name)} {name}" for name in SPLITS)
            remedy = "use more rows, or raise its share in data.splits"
            raise DataError(f"the {part} split is empty", where="data.splits", found=found, remedy=remedy)
    return parts


def _stratified(
    labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], share: float, rng: np.random.Generator
) -> Int[np.ndarray, " m"]:
    """Draw random positions: the given share of all rows and of each cell, up to rounding.

    The rows are ordered by cell, at random within each cell, and taken at equal distances.
    """
    order = np.lexsort((rng.random(len(labels)), groups, labels))
    marks = np.floor(np.arange(len(labels) + 1) * share + rng.random())
    return order[np.diff(marks) > 0]


def draw_tints(
    labels: Int[np.ndarray, " n"], splits: Shaped[np.ndarray, " n"], colors: int, seed: int
) -> Int[np.ndarray, " n"]:
    """Draw a colour for each row, each colour equally often in each class of each split (up to one)."""
    rng = stream(seed, Data.TINTS)
    order = np.lexsort((rng.random(len(labels)), labels, splits.astype(str)))
    cells = np.stack([labels[order], np.unique(splits.astype(str), return_inverse=True)[1][order]])
    starts = np.flatnonzero(np.any(np.diff(cells, prepend=-1) != 0, axis=0))
    sizes = np.diff(starts, append=len(order))
    first = rng.integers(
        colors, size=len(starts)
    )  # the first colour to get one more, if the size of a class is no multiple
    tints = np.empty(len(labels), dtype=np.int32)
    tints[order] = (np.arange(len(order)) - np.repeat(starts - first, sizes)) % colors
    return tints
