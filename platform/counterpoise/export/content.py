"""Content of an export: the images of a method's plans, each once, and optionally the real training images."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa

from counterpoise.config import Experiment
from counterpoise.errors import ConfigError, PlanError, did_you_mean, one_of
from counterpoise.storage.view import ImageView, image_ids
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.workflow.run import Run

_INTERNAL = re.compile("key|row|defect|(image|embedding)_.*")  # places, and defects, which no view contains
_FIRST = ("id", "label", "group", "split", "source", "plans")  # first columns of a row; the others follow


@dataclass(frozen=True)
class Content:
    """Content of an export.

    Attributes:
        experiment: The experiment with the plans.
        pool: Pool of the synthetic images.
        plans: Plan -> its view.
        view: Every synthetic image once, ordered by cell, then the real ones. Its column ``plans`` holds the names of
            the plans that contain the image, separated by commas; null for real images.
    """

    experiment: Experiment
    pool: Pool
    plans: dict[str, ImageView]
    view: ImageView

    def __len__(self) -> int:
        return len(self.view)

    @property
    def schema(self) -> pa.Schema:
        """Schema of :meth:`rows` without the image. Classes and groups are names here."""
        fields = {field.name: _plain(field) for field in self.view.index.schema if not _INTERNAL.fullmatch(field.name)}
        named = {name: pa.field(name, pa.string()) for name in ("label", "group")}
        order = [*_FIRST, *(name for name in fields if name not in _FIRST)]
        return pa.schema([(fields | named)[name] for name in order])

    def rows(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield (values by column, encoded image) of every row; one row group of the store is in memory."""
        names, index, columns = self.view.names, self.view.index, self.schema.names
        for position, image in self.view.images():
            (row,) = index.slice(position, 1).to_pylist()
            row["label"] = names.classes[row["label"]]
            row["group"] = names.groups[row["group"]] if names.groups and row["group"] >= 0 else None
            assert image is not None  # views have no quarantined images
            yield {name: _finite(row[name]) for name in columns}, image


def content(run: Run, plans: Sequence[str], with_real: bool) -> Content:
    """Collect the views of the run's one method with plans, sampled as needed.

    Args:
        run: A run of one method, or of several of which one has plans.
        plans: Names of the plans to export; empty for all.
        with_real: Add the training images.

    Raises:
        ConfigError: No method or more than one has plans, or there is no plan of this name.
        PlanError: The plans contain no image.
        CounterpoiseError: Sampling failed.
    """
    experiment = _the_method(run)
    for name in plans:
        if name not in experiment.plans:
            raise ConfigError(
                f"the method {experiment.method!r} has no such plan",
                where="--plan",
                found=name,
                allowed=one_of(experiment.plans),
                remedy=did_you_mean(name, experiment.plans),
            )
    synthesized = run.synthesized.views(experiment.method)
    views = {name: synthesized[name] for name in plans or experiment.plans}
    view = together(views)
    if not len(view):
        raise PlanError("there is no image to export", where=f"plans of {experiment.method}", found=one_of(views))
    pool = run.synthesized.pool(experiment.method)
    return Content(experiment, pool, views, view + run.dataset.train if with_real else view)


def _the_method(run: Run) -> Experiment:
    with_plans = run.suite.planned
    if len(with_plans) == 1:
        return next(iter(with_plans.values()))
    if not with_plans:
        raise ConfigError("there is no plan to export", where="--method", found=one_of(run.suite.methods))
    remedy = f"choose one, for example --method {next(iter(with_plans))}"
    raise ConfigError("several methods have plans", where="--method", found=one_of(with_plans), remedy=remedy)


def together(views: Mapping[str, ImageView]) -> ImageView:
    """Merge views: every image once, by cell and index, with the names of its views in the column ``plans``."""
    view = reduce(add, views.values()).distinct()
    *taken, every = image_ids([*views.values(), view])
    takers: list[list[str]] = [[] for _ in range(len(view))]
    for name, ids in zip(views, taken, strict=True):
        for position in np.searchsorted(every, np.unique(ids)).tolist():
            takers[position].append(name)
    column = pa.array([",".join(names) for names in takers], pa.string())
    index = view.index.append_column("plans", column)
    if "index" in index.column_names:  # an empty view has no columns but those of real images
        index = index.sort_by([(name, "ascending") for name in ("label", "group", "index")])
    return ImageView(view.store, view.names, index)


def files_needed(count: int, per_file: int) -> int:
    """Return the number of files for ``count`` images, at most ``per_file`` each; at least one."""
    return max(1, math.ceil(count / per_file))


def _plain(field: pa.Field) -> pa.Field:
    """Return the field of a column's values, for a dictionary column."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def _finite(value: Any) -> Any:
    """Replace infinity (a margin without rivals), which JSON and CSV cannot hold, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
