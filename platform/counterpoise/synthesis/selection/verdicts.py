"""Verdicts on a pool's images: accepted by the filters of a selection, or rejected with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from counterpoise import config
from counterpoise.execution import graph
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.selection import cell_job, filters
from counterpoise.synthesis.selection.cell_job import CellJob
from counterpoise.synthesis.selection.filters import ActiveFilter, ColumnFilter

QUARANTINED = "quarantined"  # the verdict on an image without a usable sample
_PENDING, _ACCEPTED, _DEFECT, _FIRST = 0, 1, 2, 3  # verdicts as numbers; from _FIRST on those of the filters


class Verdicts:
    """The verdicts of one selection's filters, for each row of the pool's index.

    Column filters judge all rows at once; image filters judge a shard when it is first asked for, after the earlier
    shards of its cell.

    Args:
        pool: The pool.
        selection: The filters; ``max_draw`` has no effect.

    Attributes:
        filters: The active filters.

    Raises:
        ConfigError: A filter does not exist.
    """

    def __init__(self, pool: Pool, selection: config.Selection) -> None:
        self.pool, self.filters, self._selection = pool, filters.active_filters(selection), selection
        self._images = [one for one in self.filters if not isinstance(one.function, ColumnFilter)]
        self._codes = np.empty(0, np.int8)
        self._reasons: dict[int, str] = {}  # by row, of image filters
        self._candidates: dict[int, filters.Candidates] = {}  # by rank, of one cell
        self._cell: tuple[int, int] | None = None

    @property
    def step(self) -> int | None:
        """Shards to judge at a time: one for image filters, which are slow; None for any number."""
        return 1 if self._images else None

    def judge(self, cells: Sequence[tuple[Int[np.ndarray, " _"], int]]) -> None:
        """Judge the shards of many cells, each on its own: as Ray tasks, on a cluster that this process joins.

        Elsewhere a shard is judged in this process, when it is asked for.

        Args:
            cells: For each cell the ranks of its shards, from the first on, and the accepted images that suffice.
        """
        if not self._images or not graph.joins_a_cluster():
            return
        from counterpoise.execution.cluster import map_tasks

        self._extend()
        jobs = {index: job for index, cell in enumerate(cells) if (job := self._job(*cell)) is not None}
        for index, verdicts in zip(jobs, map_tasks(cell_job.run, list(jobs.values())), strict=True):
            for rank, found in zip(cells[index][0].tolist(), verdicts, strict=False):
                self._record(rank, found)

    def _job(self, ranks: Int[np.ndarray, " _"], enough: int) -> CellJob | None:
        """Return the judgement of a cell; None if it has no shard to judge before it has enough images."""
        codes = self._codes.reshape(-1, self.pool.shard_size)[ranks]
        before = np.cumsum((codes == _ACCEPTED).sum(axis=1)) - (codes == _ACCEPTED).sum(axis=1)
        if not ((codes == _PENDING).any(axis=1) & (before < enough)).any():
            return None
        usable = [self._usable(rank) for rank in ranks.tolist()]
        pending = [np.isin(self._codes[rows], (_PENDING, _ACCEPTED)) for rows in usable]
        return CellJob([self.pool.view(rows) for rows in usable], pending, enough, self._selection)

    def accepted(self, ranks: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "n shard_size"]:
        """Return masks of the images of shards that a plan may take.

        Image filters need all earlier shards of a cell: the ranks of a cell must be a part of its prefix, see
        :meth:`counterpoise.synthesis.pool.index.PoolIndex.prefix`.
        """
        self._extend()
        codes = self._codes.reshape(-1, self.pool.shard_size)
        for rank in ranks.tolist() if self._images else ():
            if (codes[rank] == _PENDING).any():
                self._judge(rank)
        return codes[ranks] == _ACCEPTED

    def rejects(self, ranks: Int[np.ndarray, " n"]) -> ImageView:
        """Return the images of shards that no plan may take, in order, with columns ``filter`` and ``reason``."""
        self.accepted(ranks)
        size = self.pool.shard_size
        rows = (ranks[:, None] * size + np.arange(size)).ravel()
        rows = rows[self._codes[rows] >= _DEFECT]
        view, names = self.pool.view(rows), [QUARANTINED, *(name for name, *_ in self.filters)]
        codes = pa.array(self._codes[rows] - _DEFECT, pa.int32())
        index = view.index.append_column("filter", pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string())))
        reasons = [self._reason(int(row), view.index.slice(place, 1)) for place, row in enumerate(rows)]
        index = index.append_column("reason", pa.array(reasons, pa.string()))
        return ImageView(self.pool.store, self.pool.names, index)

    def available_counts(self) -> Int[np.ndarray, "classes groups"]:
        """Return images per cell that a plan could take now: from the first shard to the first missing one."""
        counts = np.zeros(self.pool.names.shape, dtype=np.int64)
        cells = [(cell, ranks) for cell in np.ndindex(counts.shape) if len(ranks := self.pool.index.prefix(*cell))]
        self.judge([(ranks, len(ranks) * self.pool.shard_size) for _, ranks in cells])
        for cell, ranks in cells:
            counts[cell] = self.accepted(ranks).sum()
        return counts

    def _extend(self) -> None:
        """Judge the rows that the index gained, by their defects and by column filters."""
        index, first = self.pool.index, len(self._codes)
        defects = index.column("defect")
        if len(defects) == first:
            return
        new = np.where(np.asarray(defects.is_null())[first:], _PENDING if self._images else _ACCEPTED, _DEFECT)
        for number, (_, function, settings) in enumerate(self.filters):
            if isinstance(function, ColumnFilter):
                columns = {name: self._by_image(name)[first:] for name in function.columns}
                undecided = (new == _PENDING) | (new == _ACCEPTED)
                new = np.where(undecided & function.rejects(columns, settings), _FIRST + number, new)
        self._codes = np.concatenate([self._codes, new.astype(np.int8)])

    def _by_image(self, name: str) -> np.ndarray:
        values = self.pool.index.values(name)
        if name == "group" and not self.pool.names.groups:
            values = np.full_like(values, -1)
        return np.repeat(values, self.pool.shard_size) if name in ("label", "group") else values

    def _judge(self, rank: int) -> None:
        """Judge a shard by the image filters, after the earlier shards of its cell."""
        index = self.pool.index
        label, group = (int(index.by_shard(name)[rank]) for name in ("label", "group"))
        if self._cell != (label, group):
            self._cell, self._candidates = (label, group), {}
        for earlier in index.prefix(label, group).tolist():
            if earlier not in self._candidates:
                self._candidates[earlier] = self._candidates_of(earlier)
                self._evaluate(earlier)
            if earlier == rank:
                return

    def _candidates_of(self, rank: int) -> filters.Candidates:
        """Return a shard's usable images, after the candidates of the cell's earlier shards."""
        return filters.Candidates(self.pool.view(self._usable(rank)), tuple(self._candidates.values()))

    def _evaluate(self, rank: int) -> None:
        """Apply the image filters to a shard, unless its images are judged."""
        if (self._codes[self._usable(rank)] == _PENDING).any():
            self._record(rank, filters.evaluate_filters(self._candidates[rank], self._images))

    def _record(self, rank: int, verdicts: Sequence[filters.Reject | None]) -> None:
        """Keep the image filters' verdicts on a shard's usable images."""
        numbers = {one.name: number for number, one in enumerate(self.filters)}
        for row, verdict in zip(self._usable(rank).tolist(), verdicts, strict=True):
            if self._codes[row] == _PENDING:
                self._codes[row] = _ACCEPTED if verdict is None else _FIRST + numbers[verdict.filter]
                if verdict is not None:
                    self._reasons[row] = verdict.reason

    def _usable(self, rank: int) -> Int[np.ndarray, " n"]:
        rows = np.arange(rank * self.pool.shard_size, (rank + 1) * self.pool.shard_size)
        return rows[self._codes[rows] != _DEFECT]

    def _reason(self, row: int, values: pa.Table) -> str:
        code = int(self._codes[row])
        if code == _DEFECT:
            return f"quarantined: {values['defect'][0].as_py()}"
        _, function, settings = self.filters[code - _FIRST]
        if not isinstance(function, ColumnFilter):
            return self._reasons[row]
        one: Mapping[str, Any] = {name: values[name][0].as_py() for name in function.columns}
        return function.reason(one, settings, self.pool.names)


def shared_key(selection: config.Selection) -> str:
    """Return what decides the verdicts of a selection, as a text."""
    return selection.model_dump_json(exclude={"max_draw"})


def counted(filters: list[ActiveFilter], rejects: ImageView) -> tuple[int, dict[str, int]]:
    """Return the quarantined images among rejects, and the rejected ones by filter."""
    reasons = Counter(rejects.column("filter").tolist())
    return reasons[QUARANTINED], {name: reasons[name] for name, *_ in filters}
