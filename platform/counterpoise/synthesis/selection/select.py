"""Selection of a plan's images: of each cell the first images, in index order, that pass the filters.

A view depends only on the plan and the pool's address, not on the order of sampling. Two plans therefore share the
images that both want, a larger plan contains the smaller one, and another threshold samples only the images missing
for it.
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
    takers, run, present = _takers(pool, requests), SamplingRun(pool), pool.shards()
    while missing := [(taker, shards) for taker in takers.values() if (shards := taker.missing(present))]:
        asked = sorted({shard for _, shards in missing for shard in shards})
        run.draw(asked, [taker.limit(present, shards) for taker, shards in missing])
        present |= set(asked)
    methods = {method: taker.take(present) for method, taker in takers.items()}
    considered = sorted({shard for images in methods.values() for shard in images.shards})
    return SelectedImages(
        pool=pool.digest,
        methods=methods,
        shards=len(considered),
        sampled=run.images,
        reused=sum(len(pool.rows(shard)) for shard in considered if shard not in run.receipts),
        quarantined=sum(len(rows) - rows["defect"].null_count for rows in map(pool.rows, considered)),
        purity=pool.purity(considered),
        fresh=frozenset(shard.key(pool.digest) for shard in run.receipts),
        seconds=time.monotonic() - started,
        images_per_second=run.images / run.sampling if run.images else None,
        cost=run.cost,
    )


def forecast(pool: Pool, requests: Sequence[PlanRequest]) -> tuple[Counts, Counts]:
    """Return images per cell that the pool holds for the requests, and those that it must at least sample."""
    takers = _takers(pool, requests).values()
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


class _Taker:
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

    def considered(self, present: Container[Shard]) -> list[Shard]:
        """Return the shards in the store that the plans consider."""
        return [shard for cell in _cells(self.wanted) for shard in self._prefix(*cell, present)[0]]

    def missing(self, present: Container[Shard]) -> list[Shard]:
        """Return the shards of the next round; empty if every cell has its images or has reached its bound."""
        size = self.pool.shard_size
        prefixes = {cell: self._prefix(*cell, present) for cell in _cells(self.wanted)}
        drawn = sum(len(shards) for shards, _ in prefixes.values()) * size
        typical = sum(accepted for _, accepted in prefixes.values()) / drawn if drawn else 1.0
        missing = []
        for (label, group, count), (shards, accepted) in prefixes.items():
            limit = bound(count, self.max_draw, size)
            if accepted < count and len(shards) < limit:
                more = shards_to_draw(accepted, len(shards) * size, count, typical, size)
                numbers = range(len(shards), min(len(shards) + more, limit))
                missing += [shard for number in numbers if (shard := Shard(label, group, number)) not in present]
        return missing

    def limit(self, present: Container[Shard], asked: Sequence[Shard] = ()) -> QuarantineLimit:
        """Return the limit on quarantined images, for these shards present and those requested."""
        return QuarantineLimit(self.pool, self.max_quarantined, self.considered(present), asked)

    def take(self, present: Container[Shard]) -> MethodImages:
        """Return the views, once all missing shards are present; raise SynthesisError above the quarantine limit."""
        considered = self.considered(present)
        self.limit(present).check()
        views = {request.plan: self._view(request, present) for request in self.requests}
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

    def _prefix(self, label: int, group: int, count: int, present: Container[Shard]) -> tuple[list[Shard], int]:
        """Return the cell's present shards from the first on that its images come from; and its accepted images."""
        shards: list[Shard] = []
        accepted = 0
        for number in range(bound(count, self.max_draw, self.pool.shard_size)):
            shard = Shard(label, group, number)
            if accepted >= count or shard not in present:
                break
            shards.append(shard)
            accepted += int(self.verdicts.accepted(shard).sum())
        return shards, accepted

    def _view(self, request: PlanRequest, present: Container[Shard]) -> ImageView:
        shards, taken = [], []
        for label, group, needed in _cells(request.counts):
            skipped = request.skip
            for shard in self._prefix(label, group, needed + request.skip, present)[0]:
                usable = np.flatnonzero(self.verdicts.accepted(shard))
                rows = usable[skipped:][:needed]
                skipped, needed = max(skipped - len(usable), 0), needed - len(rows)
                shards.append(shard)
                taken.append(rows)
        return self.pool.view(shards, taken)


def _takers(pool: Pool, requests: Sequence[PlanRequest]) -> dict[str, _Taker]:
    """Return the takers by method; methods with the same filters share their verdicts."""
    verdicts: dict[str, Verdicts] = {}
    by_method: dict[str, list[PlanRequest]] = {}
    for request in requests:
        by_method.setdefault(request.method, []).append(request)
    takers = {}
    for method, its_requests in by_method.items():
        filters = its_requests[0].selection.model_dump_json(exclude={"max_draw"})
        if filters not in verdicts:
            verdicts[filters] = Verdicts(pool, its_requests[0].selection)
        takers[method] = _Taker(pool, its_requests, verdicts[filters])
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
