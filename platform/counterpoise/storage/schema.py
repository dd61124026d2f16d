"""Schema of the image table: real or synthetic, an image is a row.

Real rows have the columns of :data:`REAL`; synthetic rows also hold their provenance (:data:`SYNTHETIC`). The
names of classes and groups are in the table's metadata, so a table can be read on its own. A *cell* is a class ×
group pair. A dataset without groups has one nameless group, and its rows have ``group = -1``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int

REAL = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),  # an encoded image file: PNG, JPEG, WebP
        ("label", pa.int32()),
        ("group", pa.int32()),  # -1: unknown
        ("split", pa.string()),  # train, validation or test
        ("source", pa.string()),  # real or synthetic
    ]
)
SYNTHETIC = pa.schema(
    [
        *REAL,
        ("index", pa.int64()),  # index within its cell of the pool
        ("prompt", pa.string()),
        ("seed", pa.uint64()),
        ("attempt", pa.int32()),  # 0 for the first sample, n after n rejected ones
        ("defect", pa.string()),  # null, or why every attempt was rejected: the row is quarantined
        ("condition_id", pa.string()),  # id of the real image used as condition; null without one
        ("criterion", pa.float32()),  # feedback criterion of the finished image; null without guidance
        ("clip_similarity", pa.float32()),  # cosine with its own prompt (Hessel et al. 2021, unscaled)
        ("clip_margin", pa.float32()),  # cosine with the cell's plain prompt minus the largest with a rival cell's
        ("clip_label", pa.int32()),  # zero-shot: class and group of the cell whose prompt has the largest cosine
        ("clip_group", pa.int32()),
        # CLIP's unit vector. Variable size: Parquet readers do not take fixed-size lists with nulls among them.
        ("clip_embedding", pa.list_(pa.float16())),
    ]
)
BULKY = ("image", "clip_embedding")  # columns that are read on request only
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

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the names as Parquet schema metadata."""
        return {b"counterpoise": json.dumps({"classes": self.classes, "groups": self.groups}).encode()}

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes]) -> LabelSpace:
        """Read the names from Parquet schema metadata."""
        names = json.loads(metadata[b"counterpoise"])
        return cls(tuple(names["classes"]), tuple(names["groups"]))


def make_table(columns: dict[str, Sequence], schema: pa.Schema, names: LabelSpace) -> pa.Table:
    """Build a table with the given schema and names; every column of the schema must be given."""
    return pa.table(columns, schema=schema.with_metadata(names.to_metadata()))


def cell_counts(
    labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], names: LabelSpace
) -> Int[np.ndarray, "classes groups"]:
    """Count the images of each cell. Rows of unknown group count only if the dataset has no groups at all."""
    counts = np.zeros(names.shape, dtype=np.int64)
    known = groups >= 0 if names.groups else np.ones(len(groups), dtype=bool)
    np.add.at(counts, (labels[known], np.maximum(groups[known], 0)), 1)
    return counts
