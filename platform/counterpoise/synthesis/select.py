"""A plan is a view on the pool: of each cell the first images, in index order, that pass the filters.

What a view shows follows from the plan and the pool's address alone, not from who drew which shard when. So two plans
share the images that both want, a larger plan contains the smaller one, and another threshold samples only what is
missing for it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

from counterpoise.synthesis.account import Account
from counterpoise.synthesis.address import Shard
from counterpoise.synthesis.pool import QUARANTINED, Pool
from counterpoise.view import View

Counts = Int[np.ndarray, "classes groups"]
Plan = TypeVar("Plan", bound=Hashable)
_PRIOR = 16  # images' worth of belief that a cell's acceptance is like that of all cells
_SLACK = 1.1  # drawn over what the estimate says, so that few cells need another round


@dataclass(frozen=True)
class Short:
    """A cell that reached the bound ``selection.max_draw`` before its plan was met."""

    plan: Any
    cell: str
    wanted: int
    got: int


@dataclass(frozen=True)
class Realized:
    """Plans as views, and what they cost.

    Attributes:
        pool: The pool's digest.
        views: One for each plan.
        short: Cells with fewer images than their plan wants.
        images: Distinct images in the views.
        shards: Shards that the plans looked into.
        sampled: Images that this call sampled; also those that turned out not to be needed.
        reused: Images in the shards looked into that were there before.
        quarantined: Images in the shards looked into without a usable sample.
        rejected: Usable images in them that a filter kept out, by filter.
        rejects: These two kinds of images, with the columns ``filter`` and ``reason``.
        purity: Images in them that CLIP looked at and, of these, images that it puts into the cell asked for.
        fresh: Keys of the shards that this call sampled.
        seconds: Wall-clock time of this call.
        images_per_second: Images sampled per second of sampling, start-up aside; None if none were.
        cost: Seconds by step, summed over workers: sample, encode, score, commit; and ``startup`` (wall clock).
    """

    pool: str
    views: dict[Any, View]
    short: list[Short]
    images: int
    shards: int
    sampled: int
    reused: int
    quarantined: int
    rejected: dict[str, int]
    rejects: View
    purity: Int[np.ndarray, "2 classes groups"]
    fresh: frozenset[str]
    seconds: float
    images_per_second: float | None
    cost: dict[str, float]


def realize(pool: Pool, wanted: Mapping[Plan, Counts], skip: Mapping[Plan, int] | None = None) -> Realized:
    """Samples what the pool lacks for all plans together and returns a view for each.

    Draws in rounds: a cell's next round follows from the share of its images that passed so far, until the plan is
    met or ``selection.max_draw`` times as many images as wanted were looked at.

    Args:
        pool: Where the images are.
        wanted: Images per cell, for each plan.
        skip: How many of each cell's images a plan leaves to others; 0 for those that are not named.

    Raises:
        SynthesisError: More than ``pool.max_quarantined`` of the images are quarantined, or sampling failed.
        CounterpoiseError: What :func:`counterpoise.synthesis.sampling.sample` raises.
    """
    started, skip = time.monotonic(), skip or {}
    union = _union(pool, {plan: reach(counts, skip.get(plan, 0)) for plan, counts in wanted.items()})
    account = Account(pool)
    here = pool.shards()
    while missing := _missing(pool, union, here):
        account.draw(missing, _considered(pool, union, here))
        here |= set(missing)
    considered = _considered(pool, union, here)
    account.check_quarantine(considered)
    views = {plan: _view(pool, counts, skip.get(plan, 0), here) for plan, counts in wanted.items()}
    rejects = pool.rejects(considered)
    reasons = Counter(rejects.index["filter"].to_pylist())
    return Realized(
        pool=pool.digest,
        views=views,
        short=[short for plan, counts in wanted.items() for short in _short(plan, counts, views[plan])],
        images=len({image for view in views.values() for image in view.column("id")}),
        shards=len(considered),
        sampled=account.images,
        reused=sum(len(pool.rows(shard)) for shard in considered if shard not in account.receipts),
        quarantined=reasons[QUARANTINED],
        rejected={name: reasons[name] for name, *_ in pool.filters},
        rejects=rejects,
        purity=pool.purity(considered),
        fresh=frozenset(shard.key(pool.digest) for shard in account.receipts),
        seconds=time.monotonic() - started,
        images_per_second=account.images / account.sampling if account.images else None,
        cost=account.cost,
    )


def reach(wanted: Counts, skip: int) -> Counts:
    """How many usable images of each cell there must be for a plan that leaves the first ``skip`` to others."""
    return np.where(wanted > 0, wanted + skip, 0)


def summary(results: Sequence[Realized]) -> dict[str, Any]:
    """What several pools gave, as one JSON-able value."""
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
            {"plan": _name(short.plan), "cell": short.cell, "wanted": short.wanted, "got": short.got}
            for result in results
            for short in result.short
        ],
        "images_per_second": round(sampled / sampling_seconds, 3) if sampling_seconds else None,
        "cost": {
            step: round(sum(result.cost.get(step, 0.0) for result in results), 2)
            for step in ("startup", "sample", "encode", "score", "commit")
        },
    }


def _purity(results: Sequence[Realized]) -> dict[str, Any]:
    """Shares of images that CLIP puts into the cell they were asked for; None where it looked at none."""
    if not results:
        return {"purity": None, "cell_purity": None}
    counts = np.sum([result.purity for result in results], axis=0)
    scored, pure = counts.tolist()
    cells = [[_share(*cell) for cell in zip(*rows, strict=True)] for rows in zip(pure, scored, strict=True)]
    total, right = counts.sum(axis=(1, 2)).tolist()
    return {"purity": _share(right, total), "cell_purity": cells if total else None}


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def shards_to_draw(accepted: int, drawn: int, wanted: int, typical: float, shard_size: int) -> int:
    """How many more shards a cell probably needs; at least one.

    Args:
        accepted: Usable images of the cell so far.
        drawn: Images of the cell so far.
        wanted: Usable images needed; more than ``accepted``.
        typical: Share of usable images over all cells, 1 if nothing is known.
        shard_size: Images of a shard.
    """
    share = (accepted + _PRIOR * typical) / (drawn + _PRIOR)
    slack = 1.0 if share > 0.99 else _SLACK
    return max(1, math.ceil((wanted - accepted) / max(share, 1e-3) * slack / shard_size - 1e-9))


def bound(wanted: int, max_draw: float, shard_size: int) -> int:
    """The most shards that a cell may look into for ``wanted`` images."""
    return math.ceil(wanted * max_draw / shard_size - 1e-9)


def _union(pool: Pool, wanted: Mapping[Any, Counts]) -> Counts:
    return np.maximum.reduce([np.zeros(pool.names.shape, dtype=np.int64), *wanted.values()])


def _cells(wanted: Counts) -> list[tuple[int, int, int]]:
    """(label, group, count) of each cell that wants images."""
    return [(int(label), int(group), int(wanted[label, group])) for label, group in np.argwhere(wanted)]


def _prefix(pool: Pool, label: int, group: int, count: int, here: set[Shard]) -> tuple[list[Shard], int]:
    """The cell's shards, from the first on, that its images come from, as far as they are there; usable images."""
    shards: list[Shard] = []
    accepted = 0
    for number in range(bound(count, pool.experiment.selection.max_draw, pool.shard_size)):
        shard = Shard(label, group, number)
        if accepted >= count or shard not in here:
            break
        shards.append(shard)
        accepted += int(pool.accepted(shard).sum())
    return shards, accepted


def _considered(pool: Pool, wanted: Counts, here: set[Shard]) -> list[Shard]:
    return [shard for cell in _cells(wanted) for shard in _prefix(pool, *cell, here)[0]]


def _missing(pool: Pool, wanted: Counts, here: set[Shard]) -> list[Shard]:
    """The shards of the next round; empty if every cell has its images or has reached its bound."""
    size = pool.shard_size
    found = {cell: _prefix(pool, *cell, here) for cell in _cells(wanted)}
    drawn = sum(len(shards) for shards, _ in found.values()) * size
    typical = sum(accepted for _, accepted in found.values()) / drawn if drawn else 1.0
    missing = []
    for (label, group, count), (shards, accepted) in found.items():
        limit = bound(count, pool.experiment.selection.max_draw, size)
        if accepted < count and len(shards) < limit:
            more = shards_to_draw(accepted, len(shards) * size, count, typical, size)
            numbers = range(len(shards), min(len(shards) + more, limit))
            missing += [shard for number in numbers if (shard := Shard(label, group, number)) not in here]
    return missing


def _view(pool: Pool, wanted: Counts, skip: int, here: set[Shard]) -> View:
    shards, taken = [], []
    for label, group, left in _cells(wanted):
        skipped = skip
        for shard in _prefix(pool, label, group, left + skip, here)[0]:
            usable = np.flatnonzero(pool.accepted(shard))
            rows = usable[skipped:][:left]
            skipped, left = max(skipped - len(usable), 0), left - len(rows)
            shards.append(shard)
            taken.append(rows)
    return pool.view(shards, taken)


def _short(plan: Any, wanted: Counts, view: View) -> list[Short]:
    got = view.counts
    return [
        Short(plan, view.names.cell(label, group), count, int(got[label, group]))
        for label, group, count in _cells(wanted)
        if got[label, group] < count
    ]


def _name(plan: Any) -> str:
    return "/".join(plan) if isinstance(plan, tuple) else str(plan)
