"""Schema of the image table: real or synthetic, an image is a row.

A *cell* is a class × group pair. A dataset without groups has one nameless group, and its rows have ``group = -1``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int

NAME = pa.dictionary(pa.int32(), pa.string())  # few values, many rows
# Where an image's bytes are in its file; see :mod:`counterpoise.storage.row_files`.
PLACE = [
    ("image_offset", pa.int64()),
    ("image_length", pa.int32()),  # -1: no image
    ("image_sha256", pa.binary(16)),  # the first half of the bytes' SHA-256
]
# The columns of every view; views of the pool have others, see counterpoise.synthesis.pool.index.
VIEW = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int32()),
        ("group", pa.int32()),  # -1: unknown
        ("split", NAME),  # train, validation or test
        ("source", NAME),  # real or synthetic
        ("key", NAME),  # file in the store
        ("row", pa.int32()),  # row in this file
        *PLACE,
    ]
)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class LabelSpace:
    """Names of the classes and groups, in the order of their integer codes. ``groups`` may be empty."""

    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(classes, groups) of the table of cells; without groups there is one column."""
        return len(self.classes), max(len(self.groups), 1)

    def cell(self, label: int, group: int) -> str:
        """Return a readable name of a cell: ``star × red``, or ``star`` without groups."""
        return f"{self.classes[label]} × {self.groups[group]}" if self.groups and group >= 0 else self.classes[label]


def cell_counts(
    labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], names: LabelSpace
) -> Int[np.ndarray, "classes groups"]:
    """Count the images of each cell. Rows of unknown group count only if the dataset has no groups at all."""
    counts = np.zeros(names.shape, dtype=np.int64)
    known = groups >= 0 if names.groups else np.ones(len(groups), dtype=bool)
    np.add.at(counts, (labels[known], np.maximum(groups[known], 0)), 1)
    return counts
