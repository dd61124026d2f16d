"""Selection of a plan's images: of each cell the first images, in index order, that pass the filters.

A view depends only on the plan and the pool's address, not on the order of sampling. Two plans therefore share the
images that both want, a larger plan contains the smaller one, and another threshold samples only the images missing
for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.selection.request import Counts, PlanRequest
from counterpoise.synthesis.selection.sampling_run import QuarantineLimit, SamplingRun
from counterpoise.synthesis.selection.selected_images import MethodImages, SelectedImages, Shortfall
from counterpoise.synthesis.selection.verdicts import Verdicts, counted, shared_key

Ranks = Int[np.ndarray, " n"]
Mask = Bool[np.ndarray, "n shard_size"]

_PRIOR = 16  # weight, in images, of the prior that a cell's acceptance rate is that of all cells
_SLACK = 1.1  # factor on the estimate, so that few cells need another round


def select_images(pool: Pool, requests: Sequence[PlanRequest]) -> SelectedImages:
    """Sample the images that the pool lacks for all requests together, and return a view for each.

    It samples in rounds: the size of a cell's next round follows from the share of its images accepted so far, until
    the plan is met or ``selection.max_draw`` times the wanted number of images were considered. Each method's own
    filters and limits apply to its requests, so that they select the same images as they would alone.

    Args:
        pool: The pool of the images.
        requests: At least one.

    Raises:
        SynthesisError: More than ``max_quarantined`` of a method's images are quarantined, or sampling failed.
        CounterpoiseError: Errors of :func:`counterpoise.synthesis.pool.sampling.sample`.
    """
    started = time.monotonic()
    takers, run, index = takers_of(pool, requests), SamplingRun(pool), pool.index
    while missing := [(taker, shards) for taker in takers.values() if (shards := taker.missing())]:
        asked = sorted({shard for _, shards in missing for shard in shards})
        run.draw(asked, [taker.limit(shards) for taker, shards in missing])
    index.gather()
    methods = {method: taker.take() for method, taker in takers.items()}
    considered = np.unique(np.concatenate([images.shards for images in methods.values()]))
    sampled = index.ranks(run.receipts)
    return SelectedImages(
        pool=pool.digest,
        methods=methods,
        shards=len(considered),
        sampled=run.images,
        reused=len(np.setdiff1d(considered, sampled)) * pool.shard_size,
        quarantined=pool.quarantined(considered),
        purity=pool.purity(considered),
        seconds=time.monotonic() - started,
        images_per_second=run.images / run.sampling if run.images else None,
        cost=run.cost,
    )


def forecast(pool: Pool, requests: Sequence[PlanRequest]) -> tuple[Counts, Counts]:
    """Return images per cell that the pool holds for the requests, and those that it must at least sample."""
    takers = takers_of(pool, requests).values()
    wanted = np.maximum.reduce([taker.wanted for taker in takers])
    missing = np.maximum.reduce([np.maximum(taker.wanted - taker.verdicts.available_counts(), 0) for taker in takers])
    return wanted - missing, missing


def shards_to_draw(accepted: int, drawn: int, wanted: int, typical: float, shard_size: int) -> int:
    """Return the number of further shards that a cell probably needs; at least one.

    Args:
        accepted: Accepted images of the cell so far.
        drawn: Images of the cell so far.
        wanted: Accepted images needed; more than ``accepted``.
        typical: Share of accepted images over all cells, 1 if unknown.
        shard_size: Images of a shard.
    """
    share = (accepted + _PRIOR * typical) / (drawn + _PRIOR)
    slack = 1.0 if share > 0.99 else _SLACK
    return max(1, math.ceil((wanted - accepted) / max(share, 1e-3) * slack / shard_size - 1e-9))


def bound(wanted: int, max_draw: float, shard_size: int) -> int:
    """Return the most shards that a cell may consider for ``wanted`` images."""
    return math.ceil(wanted * max_draw / shard_size - 1e-9)


class Taker:
    """The requests of one method, with its filters.

    Args:
        pool: The pool of the images.
        requests: The method's requests.
        verdicts: The verdicts of its filters.
    """

    def __init__(self, pool: Pool, requests: Sequence[PlanRequest], verdicts: Verdicts) -> None:
        self.pool, self.requests, self.verdicts = pool, requests, verdicts
        self.max_draw, self.max_quarantined = requests[0].selection.max_draw, requests[0].max_quarantined
        self.wanted: Counts = np.maximum.reduce([request.required_count for request in requests])

    def considered(self) -> Ranks:
        """Return the shards in the store that the plans consider, by rank."""
        self._judge()
        return _joined([self._prefix(*cell)[0] for cell in _cells(self.wanted)])

    def missing(self) -> list[Shard]:
        """Return the shards of the next round; empty if every cell has its images or has reached its bound."""
        self._judge()
        size, index = self.pool.shard_size, self.pool.index
        prefixes = [(cell, *self._prefix(*cell)) for cell in _cells(self.wanted)]
        drawn = sum(len(ranks) for _, ranks, _ in prefixes) * size
        typical = sum(int(accepted.sum()) for *_, accepted in prefixes) / drawn if drawn else 1.0
        missing = []
        for (label, group, count), ranks, accepted in prefixes:
            limit, found = bound(count, self.max_draw, size), int(accepted.sum())
            if found < count and len(ranks) < limit:
                more = shards_to_draw(found, len(ranks) * size, count, typical, size)
                numbers = range(len(ranks), min(len(ranks) + more, limit))
                missing += [shard for number in numbers if (shard := Shard(label, group, number)) not in index]
        return missing

    def limit(self, asked: Sequence[Shard] = ()) -> QuarantineLimit:
        """Return the limit on quarantined images, for the shards considered and those requested."""
        return QuarantineLimit(self.pool, self.max_quarantined, self.considered(), asked)

    def take(self) -> MethodImages:
        """Return the views, once all missing shards are there; raise SynthesisError above the quarantine limit."""
        considered = self.considered()
        self.limit().check()
        views = {request.plan: self._view(request) for request in self.requests}
        rejects = self.verdicts.rejects(considered)
        quarantined, rejected = counted(self.verdicts.filters, rejects)
        return MethodImages(
            views=views,
            short=[short for request in self.requests for short in _short(request, views[request.plan])],
            shards=considered,
            quarantined=quarantined,
            rejected=rejected,
            rejects=rejects,
            purity=self.pool.purity(considered),
            cost=self.pool.cost(considered),
        )

    def _judge(self) -> None:
        cells = [(self._bounded(label, group, count), count) for label, group, count in _cells(self.wanted)]
        self.verdicts.judge(cells)

    def _bounded(self, label: int, group: int, count: int) -> Ranks:
        """Return the shards of a cell that ``count`` images may come from."""
        return self.pool.index.prefix(label, group)[: bound(count, self.max_draw, self.pool.shard_size)]

    def _prefix(self, label: int, group: int, count: int) -> tuple[Ranks, Mask]:
        """Return the cell's shards from the first on that ``count`` images come from, and masks of accepted images.

        Image filters are slow, so that no shard is judged that is not needed.
        """
        ranks = self._bounded(label, group, count)
        step, judged = self.verdicts.step or max(len(ranks), 1), 0
        found, accepted = 0, np.zeros((0, self.pool.shard_size), dtype=bool)
        while judged < len(ranks) and found < count:
            accepted = np.concatenate([accepted, self.verdicts.accepted(ranks[judged : judged + step])])
            judged, found = len(accepted), int(accepted.sum())
        needed = int(np.searchsorted(np.cumsum(accepted.sum(axis=1)), count)) + 1
        return ranks[:judged][:needed], accepted[:needed]

    def _view(self, request: PlanRequest) -> ImageView:
        taken = []
        for label, group, needed in _cells(request.counts):
            ranks, accepted = self._prefix(label, group, needed + request.skip)
            shard, row = np.nonzero(accepted)
            taken.append((ranks[shard] * self.pool.shard_size + row)[request.skip :][:needed])
        return self.pool.view(_joined(taken))


def _joined(parts: Sequence[Int[np.ndarray, " _"]]) -> Ranks:
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def takers_of(pool: Pool, requests: Sequence[PlanRequest]) -> dict[str, Taker]:
    """Return the takers by method; methods with the same filters share their verdicts."""
    verdicts: dict[str, Verdicts] = {}
    by_method: dict[str, list[PlanRequest]] = {}
    for request in requests:
        by_method.setdefault(request.method, []).append(request)
    takers = {}
    for method, its_requests in by_method.items():
        filters = shared_key(its_requests[0].selection)
        if filters not in verdicts:
            verdicts[filters] = Verdicts(pool, its_requests[0].selection)
        takers[method] = Taker(pool, its_requests, verdicts[filters])
    return takers


def _cells(wanted: Counts) -> list[tuple[int, int, int]]:
    """Return (label, group, count) of each cell that wants images."""
    return [(int(label), int(group), int(wanted[label, group])) for label, group in np.argwhere(wanted)]


def _short(request: PlanRequest, view: ImageView) -> list[Shortfall]:
    got = view.counts
    return [
        Shortfall(request.key, view.names.cell(label, group), count, int(got[label, group]))
        for label, group, count in _cells(request.counts)
        if got[label, group] < count
    ]
