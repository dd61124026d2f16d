"""Selected images: the views of plans, the images that filters rejected, and the cost of sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Any

import numpy as np
from jaxtyping import Int

from counterpoise.storage.view import ImageView, image_ids
from counterpoise.synthesis.pool.pool import SamplingCost
from counterpoise.synthesis.selection.request import PlanKey


@dataclass(frozen=True)
class Shortfall:
    """A cell that reached the bound ``selection.max_draw`` before its plan was met."""

    plan: PlanKey
    cell: str
    wanted: int
    got: int


@dataclass(frozen=True)
class MethodImages:
    """A method's images of one pool and its rejects, independent of other methods that use the pool.

    Attributes:
        views: Views by plan.
        short: Cells with fewer images than their plan wants.
        shards: Ranks of the shards that the plans considered, in the pool's index.
        quarantined: Images in these shards without a usable sample.
        rejected: Usable images in them that a filter rejected, by filter.
        rejects: Quarantined and rejected images, with the columns ``filter`` and ``reason``.
        purity: Images in these shards that CLIP scored and, of these, images that it assigns to the requested cell.
    """

    views: dict[str, ImageView]
    short: list[Shortfall]
    shards: Int[np.ndarray, " m"]
    quarantined: int
    rejected: dict[str, int]
    rejects: ImageView
    purity: Int[np.ndarray, "2 classes groups"]
    cost: SamplingCost


@dataclass(frozen=True)
class SelectedImages:
    """Views of all plans on a pool, and their cost.

    Attributes:
        pool: The pool's digest.
        methods: Images of each method.
        shards: Number of shards that the plans considered.
        sampled: Images that this call sampled, including those that were not needed in the end.
        reused: Images in the considered shards that were in the store before.
        quarantined: Images in the considered shards without a usable sample.
        purity: Images in the considered shards that CLIP scored and, of these, images that it assigns to the requested
            cell.
        seconds: Wall-clock time of this call.
        images_per_second: Images sampled per second of sampling, without start-up; None if none were.
        cost: Seconds by step, summed over workers: sample, encode, score, commit; and ``startup`` (wall clock).
    """

    pool: str
    methods: dict[str, MethodImages]
    shards: int
    sampled: int
    reused: int
    quarantined: int
    purity: Int[np.ndarray, "2 classes groups"]
    seconds: float
    images_per_second: float | None
    cost: dict[str, float]

    @cached_property
    def views(self) -> dict[PlanKey, ImageView]:
        """One view for each plan of each method."""
        return {(method, plan): view for method, images in self.methods.items() for plan, view in images.views.items()}

    @property
    def short(self) -> list[Shortfall]:
        """Cells with fewer images than their plan wants."""
        return [short for images in self.methods.values() for short in images.short]

    @cached_property
    def images(self) -> int:
        """Distinct images in the views."""
        ids = image_ids(list(self.views.values()))
        return len(np.unique(np.concatenate(ids))) if ids else 0

    @cached_property
    def rejects(self) -> ImageView:
        """The images that some method's filters rejected, once for each rejecting filter."""
        views = [images.rejects for images in self.methods.values()]
        every = reduce(add, views)
        (ids,), filters = image_ids([every]), every.column("filter")
        _, codes = np.unique(filters.astype(str), return_inverse=True)
        return every.take(np.sort(np.unique(np.stack([ids, codes]), axis=1, return_index=True)[1]))

    @property
    def rejected(self) -> dict[str, int]:
        """Number of usable images that each filter rejected from some method's plans."""
        names = dict.fromkeys(name for images in self.methods.values() for name in images.rejected)
        counts = Counter(self.rejects.column("filter").tolist())
        return {name: counts[name] for name in names}


def summary(results: Sequence[SelectedImages]) -> dict[str, Any]:
    """Return the results of several pools as one JSON-able value."""
    sampling_seconds = sum(result.sampled / result.images_per_second for result in results if result.images_per_second)
    sampled = sum(result.sampled for result in results)
    rejected = Counter[str]()
    for result in results:
        rejected.update(result.rejected)
    return {
        "pool": " ".join(result.pool for result in results),
        "shards": sum(result.shards for result in results),
        "images": sum(result.images for result in results),
        "sampled": sampled,
        "reused": sum(result.reused for result in results),
        "quarantined": sum(result.quarantined for result in results),
        "rejected": dict(rejected),
        **_purity(results),
        "short_cells": [
            {"plan": "/".join(short.plan), "cell": short.cell, "wanted": short.wanted, "got": short.got}
            for result in results
            for short in result.short
        ],
        "images_per_second": round(sampled / sampling_seconds, 3) if sampling_seconds else None,
        "cost": {
            step: round(sum(result.cost.get(step, 0.0) for result in results), 2)
            for step in ("startup", "sample", "encode", "score", "commit")
        },
    }


def _purity(results: Sequence[SelectedImages]) -> dict[str, Any]:
    """Return shares of images that CLIP assigns to their requested cell; None if it scored none."""
    if not results:
        return {"purity": None, "cell_purity": None}
    counts = np.sum([result.purity for result in results], axis=0)
    scored, pure = counts.tolist()
    cells = [[_share(*cell) for cell in zip(*rows, strict=True)] for rows in zip(pure, scored, strict=True)]
    total, right = counts.sum(axis=(1, 2)).tolist()
    return {"purity": _share(right, total), "cell_purity": cells if total else None}


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
