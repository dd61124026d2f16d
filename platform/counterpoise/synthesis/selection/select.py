"""A plan is a view on the pool: of each cell the first images, in index order, that pass the filters.

What a view shows follows from the plan and the pool's address alone, not from who drew which shard when. So two plans
share the images that both want, a larger plan contains the smaller one, and another threshold samples only what is
missing for it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Container, Sequence

import numpy as np

from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.selection.request import Counts, PlanRequest
from counterpoise.synthesis.selection.sampling_run import QuarantineLimit, SamplingRun
from counterpoise.synthesis.selection.selected_images import MethodImages, SelectedImages, Shortfall
from counterpoise.synthesis.selection.verdicts import QUARANTINED, Verdicts

_PRIOR = 16  # images' worth of belief that a cell's acceptance is like that of all cells
_SLACK = 1.1  # drawn over what the estimate says, so that few cells need another round


def select_images(pool: Pool, requests: Sequence[PlanRequest]) -> SelectedImages:
    """Samples what the pool lacks for all requests together and returns a view for each.

    Draws in rounds: a cell's next round follows from the share of its images that passed so far, until the plan is
    met or ``selection.max_draw`` times as many images as wanted were looked at. Each method's requests are judged by
    its own filters and bounded by its own limits, so that they take what they would take alone.

    Args:
        pool: Where the images are.
        requests: At least one.

    Raises:
        SynthesisError: More than ``max_quarantined`` of a method's images are quarantined, or sampling failed.
        CounterpoiseError: What :func:`counterpoise.synthesis.pool.sampling.sample` raises.
    """
    started = time.monotonic()
    takers, account, here = _takers(pool, requests), SamplingRun(pool), pool.shards()
    while missing := [(taker, shards) for taker in takers.values() if (shards := taker.missing(here))]:
        asked = sorted({shard for _, shards in missing for shard in shards})
        account.draw(asked, [taker.limit(here, shards) for taker, shards in missing])
        here |= set(asked)
    methods = {method: taker.take(here) for method, taker in takers.items()}
    considered = sorted({shard for images in methods.values() for shard in images.shards})
    return SelectedImages(
        pool=pool.digest,
        methods=methods,
        shards=len(considered),
        sampled=account.images,
        reused=sum(len(pool.rows(shard)) for shard in considered if shard not in account.receipts),
        quarantined=sum(len(rows) - rows["defect"].null_count for rows in map(pool.rows, considered)),
        purity=pool.purity(considered),
        fresh=frozenset(shard.key(pool.digest) for shard in account.receipts),
        seconds=time.monotonic() - started,
        images_per_second=account.images / account.sampling if account.images else None,
        cost=account.cost,
    )


def forecast(pool: Pool, requests: Sequence[PlanRequest]) -> tuple[Counts, Counts]:
    """Images per cell that the pool holds for the requests, and those that it must sample at least."""
    takers = _takers(pool, requests).values()
    wanted = np.maximum.reduce([taker.wanted for taker in takers])
    missing = np.maximum.reduce([np.maximum(taker.wanted - taker.verdicts.available_counts(), 0) for taker in takers])
    return wanted - missing, missing


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


class _Taker:
    """The requests of one method, judged by its filters.

    Args:
        pool: Where the images are.
        requests: Of one method.
        verdicts: Of its filters.
    """

    def __init__(self, pool: Pool, requests: Sequence[PlanRequest], verdicts: Verdicts) -> None:
        self.pool, self.requests, self.verdicts = pool, requests, verdicts
        self.max_draw, self.max_quarantined = requests[0].selection.max_draw, requests[0].max_quarantined
        self.wanted: Counts = np.maximum.reduce([request.reach for request in requests])

    def considered(self, here: Container[Shard]) -> list[Shard]:
        """The shards that the plans look into, as far as they are there."""
        return [shard for cell in _cells(self.wanted) for shard in self._prefix(*cell, here)[0]]

    def missing(self, here: Container[Shard]) -> list[Shard]:
        """The shards of the next round; empty if every cell has its images or has reached its bound."""
        size = self.pool.shard_size
        found = {cell: self._prefix(*cell, here) for cell in _cells(self.wanted)}
        drawn = sum(len(shards) for shards, _ in found.values()) * size
        typical = sum(accepted for _, accepted in found.values()) / drawn if drawn else 1.0
        missing = []
        for (label, group, count), (shards, accepted) in found.items():
            limit = bound(count, self.max_draw, size)
            if accepted < count and len(shards) < limit:
                more = shards_to_draw(accepted, len(shards) * size, count, typical, size)
                numbers = range(len(shards), min(len(shards) + more, limit))
                missing += [shard for number in numbers if (shard := Shard(label, group, number)) not in here]
        return missing

    def limit(self, here: Container[Shard], asked: Sequence[Shard] = ()) -> QuarantineLimit:
        """Return the limit of quarantined images, when these shards are there and those are asked for."""
        return QuarantineLimit(self.pool, self.max_quarantined, self.considered(here), asked)

    def take(self, here: Container[Shard]) -> MethodImages:
        """The views, when all that was missing is there. Raises SynthesisError if too much of it is quarantined."""
        considered = self.considered(here)
        self.limit(here).check()
        views = {request.plan: self._view(request, here) for request in self.requests}
        rejects = self.verdicts.rejects(considered)
        reasons = Counter(rejects.index["filter"].to_pylist())
        return MethodImages(
            views=views,
            short=[short for request in self.requests for short in _short(request, views[request.plan])],
            shards=frozenset(considered),
            quarantined=reasons[QUARANTINED],
            rejected={name: reasons[name] for name, *_ in self.verdicts.filters},
            rejects=rejects,
            purity=self.pool.purity(considered),
        )

    def _prefix(self, label: int, group: int, count: int, here: Container[Shard]) -> tuple[list[Shard], int]:
        """The cell's shards, from the first on, that its images come from, as far as they are there; usable images."""
        shards: list[Shard] = []
        accepted = 0
        for number in range(bound(count, self.max_draw, self.pool.shard_size)):
            shard = Shard(label, group, number)
            if accepted >= count or shard not in here:
                break
            shards.append(shard)
            accepted += int(self.verdicts.accepted(shard).sum())
        return shards, accepted

    def _view(self, request: PlanRequest, here: Container[Shard]) -> ImageView:
        shards, taken = [], []
        for label, group, left in _cells(request.counts):
            skipped = request.skip
            for shard in self._prefix(label, group, left + request.skip, here)[0]:
                usable = np.flatnonzero(self.verdicts.accepted(shard))
                rows = usable[skipped:][:left]
                skipped, left = max(skipped - len(usable), 0), left - len(rows)
                shards.append(shard)
                taken.append(rows)
        return self.pool.view(shards, taken)


def _takers(pool: Pool, requests: Sequence[PlanRequest]) -> dict[str, _Taker]:
    """Return the takers by method. Methods with the same filters share their verdicts."""
    judges: dict[str, Verdicts] = {}
    by_method: dict[str, list[PlanRequest]] = {}
    for request in requests:
        by_method.setdefault(request.method, []).append(request)
    takers = {}
    for method, own in by_method.items():
        filters = own[0].selection.model_dump_json(exclude={"max_draw"})
        if filters not in judges:
            judges[filters] = Verdicts(pool, own[0].selection)
        takers[method] = _Taker(pool, own, judges[filters])
    return takers


def _cells(wanted: Counts) -> list[tuple[int, int, int]]:
    """(label, group, count) of each cell that wants images."""
    return [(int(label), int(group), int(wanted[label, group])) for label, group in np.argwhere(wanted)]


def _short(request: PlanRequest, view: ImageView) -> list[Shortfall]:
    got = view.counts
    return [
        Shortfall(request.key, view.names.cell(label, group), count, int(got[label, group]))
        for label, group, count in _cells(request.counts)
        if got[label, group] < count
    ]
