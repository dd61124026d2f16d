"""A plan is a view on the pool: of each cell the first images, in index order, that pass the filter.

What a view shows follows from the plan and the pool's address alone, not from who drew which shard when. So two plans
share the images that both want, a larger plan contains the smaller one, and another threshold samples only what is
missing for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

from counterpoise.errors import SynthesisError
from counterpoise.progress import Progress
from counterpoise.synthesis import sampling
from counterpoise.synthesis.address import Shard
from counterpoise.synthesis.pool import Pool
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
        rejected: Images in them below the threshold.
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
    rejected: int
    fresh: frozenset[str]
    seconds: float
    images_per_second: float | None
    cost: dict[str, float]


def realize(pool: Pool, wanted: Mapping[Plan, Counts]) -> Realized:
    """Samples what the pool lacks for all plans together and returns a view for each.

    Draws in rounds: a cell's next round follows from the share of its images that passed so far, until the plan is
    met or ``selection.max_draw`` times as many images as wanted were looked at.

    Args:
        pool: Where the images are.
        wanted: Images per cell, for each plan.

    Raises:
        SynthesisError: More than ``pool.max_quarantined`` of the images are quarantined, or sampling failed.
        CounterpoiseError: What :func:`counterpoise.synthesis.sampling.sample` raises.
    """
    started = time.monotonic()
    union = _union(pool, wanted)
    account = _Account(pool)
    here = pool.shards()
    while missing := _missing(pool, union, here):
        account.draw(missing, _considered(pool, union, here))
        here |= set(missing)
    considered = _considered(pool, union, here)
    account.check_quarantine(considered)
    views = {plan: _view(pool, counts, here) for plan, counts in wanted.items()}
    sizes = [len(pool.rows(shard)) for shard in considered]
    reused = sum(size for shard, size in zip(considered, sizes, strict=True) if shard not in account.receipts)
    accepted = sum(int(pool.accepted(shard).sum()) for shard in considered)
    quarantined = sum(_quarantined(pool, shard) for shard in considered)
    got = [view.counts for view in views.values()]
    return Realized(
        pool=pool.digest,
        views=views,
        short=[short for plan, counts in wanted.items() for short in _short(plan, counts, views[plan])],
        images=int(np.maximum.reduce(got).sum()) if got else 0,
        shards=len(considered),
        sampled=account.images,
        reused=reused,
        quarantined=quarantined,
        rejected=sum(sizes) - accepted - quarantined,
        fresh=frozenset(shard.key(pool.digest) for shard in account.receipts),
        seconds=time.monotonic() - started,
        images_per_second=account.images / account.sampling if account.images else None,
        cost=account.cost,
    )


def view_of(pool: Pool, wanted: Counts) -> View:
    """The view that a plan has now, without sampling: shorter than wanted where the pool lacks images."""
    return _view(pool, wanted, pool.shards())


def summary(results: Sequence[Realized]) -> dict[str, Any]:
    """What several pools gave, as one JSON-able value."""
    sampling_seconds = sum(result.sampled / result.images_per_second for result in results if result.images_per_second)
    sampled = sum(result.sampled for result in results)
    return {
        "pool": " ".join(result.pool for result in results),
        "shards": sum(result.shards for result in results),
        "images": sum(result.images for result in results),
        "sampled": sampled,
        "reused": sum(result.reused for result in results),
        "quarantined": sum(result.quarantined for result in results),
        "rejected": sum(result.rejected for result in results),
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


class _Account:
    """What this call drew, and what that cost."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.receipts: dict[Shard, sampling.Receipt] = {}
        self.sampling = 0.0  # seconds between the first sample and the last commit, over all rounds
        self.cost: dict[str, float] = {}

    @property
    def images(self) -> int:
        return sum(receipt.images for receipt in self.receipts.values())

    def draw(self, shards: Sequence[Shard], considered: Sequence[Shard]) -> None:
        """One round; ends early as soon as it is certain that too many images are quarantined."""
        begun, first, total = time.time(), math.inf, len(shards) * self.pool.shard_size
        bad = sum(_quarantined(self.pool, shard) for shard in considered)
        allowed = self.pool.experiment.pool.max_quarantined * (total + len(considered) * self.pool.shard_size)
        with Progress("sampling", total, "images") as progress:

            def on_receipt(receipt: sampling.Receipt) -> None:
                nonlocal bad, first
                if receipt.started < first:
                    first = receipt.started
                    progress.restart_clock(time.time() - first)
                bad += receipt.quarantined
                progress.advance(receipt.images, f"{bad} quarantined" if bad else "")
                self.receipts[receipt.shard] = receipt
                if bad > allowed:
                    self._too_many(bad, progress.done + len(considered) * self.pool.shard_size, receipt.shard)

            receipts = sampling.sample(self.pool, shards, on_receipt)
        self.sampling += time.time() - first
        self._charge("startup", first - begun)
        for receipt in receipts:
            for step, seconds in receipt.seconds.items():
                self._charge(step, seconds)

    def check_quarantine(self, considered: Sequence[Shard]) -> None:
        """Raises SynthesisError if too many of the images are quarantined, also if they were so before."""
        bad = [_quarantined(self.pool, shard) for shard in considered]
        total = len(considered) * self.pool.shard_size
        if total and sum(bad) > self.pool.experiment.pool.max_quarantined * total:
            self._too_many(sum(bad), total, considered[int(np.argmax(bad))])

    def _charge(self, step: str, seconds: float) -> None:
        self.cost[step] = self.cost.get(step, 0.0) + seconds

    def _too_many(self, bad: int, total: int, example: Shard) -> None:
        defects = self.pool.rows(example)["defect"].drop_null().to_pylist()
        raise SynthesisError(
            "the generator makes too many useless images",
            where=f"{self.pool.store.uri}/{example.key(self.pool.digest)}",
            found=f"{bad} of {total} images quarantined: {', '.join(sorted(set(defects)))}",
            allowed=f"pool.max_quarantined: {self.pool.experiment.pool.max_quarantined:g} of all",
            remedy="look at generator.dtype (float16 overflows in some models), guidance_scale and the prompts",
        )


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


def _view(pool: Pool, wanted: Counts, here: set[Shard]) -> View:
    shards, taken = [], []
    for label, group, left in _cells(wanted):
        for shard in _prefix(pool, label, group, left, here)[0]:
            rows = np.flatnonzero(pool.accepted(shard))[:left]
            left -= len(rows)
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


def _quarantined(pool: Pool, shard: Shard) -> int:
    rows = pool.rows(shard)
    return len(rows) - rows["defect"].null_count


def _name(plan: Any) -> str:
    return "/".join(plan) if isinstance(plan, tuple) else str(plan)
