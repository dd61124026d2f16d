"""Filters: they decide which images of the pool a plan may take, and give a reason for each rejection.

A filter is active if the key of its name in ``selection`` is set. There are two kinds:

- A *column filter* compares columns of the index, such as CLIP's scores, of all images at once.
- An *image filter* is a function of a shard's :class:`Candidates` and of its settings, which may look at images,
  vectors and earlier shards of the cell. It returns a reason for each image that it rejects and None for every other.
  It is also what ``selection.custom`` names as ``module:function``.

A new filter stands in this file, with a key in :class:`counterpoise.config.Selection`. Column filters come first.

A verdict depends on the image and on earlier images of its cell, never on later ones or on a plan's selection. A larger
plan therefore contains the smaller one, whatever the order of sampling.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from PIL import Image, ImageStat

from counterpoise import config
from counterpoise.core import plugins
from counterpoise.errors import ConfigError
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.view import ImageView


@dataclass(frozen=True)
class Candidates:
    """The usable images of a shard. Columns outside the index are read when a filter asks for them.

    Attributes:
        view: Their rows, with labels and CLIP's scores; ``view.images()`` reads their files.
        earlier: The candidates of the cell's earlier shards, from the first on.
    """

    view: ImageView
    earlier: Sequence[Candidates] = ()

    def __len__(self) -> int:
        return len(self.view)

    @property
    def rows(self) -> pa.Table:
        """The images' rows in the index."""
        return self.view.index

    @cached_property
    def embeddings(self) -> Float[np.ndarray, "n d"]:
        """CLIP's unit vectors of the images; d is 0 without images."""
        return self.view.embeddings()


class Reject(NamedTuple):
    """The reason for a rejection: the filter's name, and the reason in words."""

    filter: str
    reason: str


Columns = Mapping[str, np.ndarray]
ImageFilter = Callable[[Candidates, Any], Sequence[str | None]]


class ColumnFilter(NamedTuple):
    """A filter on columns of the index.

    Attributes:
        rejects: (columns, settings) -> mask of the rows that it rejects.
        reason: (one row's values, settings, names) -> the reason in words.
        columns: The columns that it reads.
    """

    rejects: Callable[[Columns, Any], np.ndarray]
    reason: Callable[[Mapping[str, Any], Any, LabelSpace], str]
    columns: tuple[str, ...]

    def __call__(self, candidates: Candidates, settings: Any) -> list[str | None]:
        """Return a reason for each rejected candidate, as an image filter does."""
        values = {name: candidates.view.column(name) for name in self.columns}
        return [
            self.reason({name: column[row] for name, column in values.items()}, settings, candidates.view.names)
            if rejected
            else None
            for row, rejected in enumerate(self.rejects(values, settings))
        ]


Filter = ImageFilter | ColumnFilter
IMAGE_FILTERS: dict[str, ImageFilter] = {}  # by the key of `selection`; applied in this order


class ActiveFilter(NamedTuple):
    """A filter that is active, with its settings."""

    name: str
    function: Filter
    settings: Any


def register(function: ImageFilter) -> ImageFilter:
    """Register an image filter under its own name."""
    IMAGE_FILTERS[function.__name__] = function
    return function


def active_filters(selection: config.Selection) -> list[ActiveFilter]:
    """Return the active filters, in the order of their application.

    Raises:
        ConfigError: ``selection.custom`` names a function that does not exist.
    """
    every: dict[str, Filter] = {**COLUMN_FILTERS, **IMAGE_FILTERS}
    registered = [(name, function, getattr(selection, name)) for name, function in every.items()]
    custom = [
        ActiveFilter(name, plugins.load(name, "selection.custom"), settings)
        for name, settings in selection.custom.items()
    ]
    return [ActiveFilter(*entry) for entry in registered if entry[2] is not None] + custom


def evaluate_filters(candidates: Candidates, filters: Sequence[ActiveFilter]) -> list[Reject | None]:
    """Return for each candidate None, or the first rejection.

    Raises:
        ConfigError: A filter does not return a text or None for each image.
    """
    verdicts: list[Reject | None] = [None] * len(candidates)
    for name, function, settings in filters:
        reasons = list(function(candidates, settings))
        if len(reasons) != len(candidates) or not all(reason is None or isinstance(reason, str) for reason in reasons):
            raise ConfigError(
                "a filter must return a reason or None for each image",
                where=f"selection.custom.{name}",
                found=f"{reasons[:3]} … ({len(reasons)} for {len(candidates)} images)",
            )
        for row, reason in enumerate(reasons):
            if reason is not None and verdicts[row] is None:
                verdicts[row] = Reject(name, reason)
    return verdicts


# -- the filters -------------------------------------------------------------------------------------------------------


def _at_least(column: str) -> ColumnFilter:
    """Return the filter that accepts images whose value in a column is at least the setting."""

    def reason(row: Mapping[str, Any], least: float, names: LabelSpace) -> str:
        return f"{column} {row[column]:.3f} < {least:g}"

    return ColumnFilter(lambda columns, least: ~(columns[column] >= least), reason, (column,))


def _zero_shot(columns: Columns, what: str) -> np.ndarray:
    wrong = columns["label"] != columns["clip_label"]
    return wrong if what == "label" else wrong | (columns["group"] != columns["clip_group"])


def _zero_shot_reason(row: Mapping[str, Any], what: str, names: LabelSpace) -> str:
    return f"zero_shot: CLIP sees {names.cell(row['clip_label'], row['clip_group'])}"


COLUMN_FILTERS: dict[str, ColumnFilter] = {
    # accepts images whose cosine with their own prompt is at least the setting
    "clip_similarity": _at_least("clip_similarity"),
    # accepts images whose cosine with their own prompt exceeds every rival cell's by at least the setting
    "clip_margin": _at_least("clip_margin"),
    # accepts images to which CLIP assigns the requested class (`label`), or class and group (`cell`)
    "zero_shot": ColumnFilter(_zero_shot, _zero_shot_reason, ("label", "group", "clip_label", "clip_group")),
}


@register
def grey(candidates: Candidates, levels: float) -> list[str | None]:
    """Accept images whose mean of red differs from the mean of all channels by at least ``levels`` of 255.

    It is FFR's rule against grey images, which its code gives as 1.5e6 (faces) and 2e5 (animals), summed over 512 × 512
    pixels: 5.7 and 0.76 levels. It decodes every image.
    """
    reasons: list[str | None] = [None] * len(candidates)
    for row, data in candidates.view.images():
        with Image.open(io.BytesIO(data or b"")) as image:
            means = ImageStat.Stat(image.convert("RGB")).mean
        lead = abs(sum(means) / 3 - means[0])
        if lead < levels:
            reasons[row] = f"grey: red within {lead:.2f} < {levels:g} levels of the mean"
    return reasons


@register
def near_duplicate(candidates: Candidates, threshold: float) -> list[str | None]:
    """Accept images without an earlier image of the cell at a cosine of ``threshold`` or more.

    Rejected earlier images count too. Shards are compared pairwise, so that the largest matrix has ``shard_size``²
    elements. The reason names the first such image.
    """
    reasons: list[str | None] = [None] * len(candidates)
    for other in (*candidates.earlier, candidates):
        if not len(candidates) or not len(other):
            continue
        cosines = candidates.embeddings @ other.embeddings.T
        close = np.tril(cosines >= threshold, -1) if other is candidates else cosines >= threshold
        for row in np.flatnonzero(close.any(axis=1)):
            if reasons[row] is None:
                first = int(np.argmax(close[row]))
                reasons[row] = f"near-duplicate of {other.rows['id'][first]}, cosine {cosines[row, first]:.3f}"
    return reasons
