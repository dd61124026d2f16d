"""Verdicts on a pool's images: accepted by the filters of a selection, or rejected with a reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from counterpoise import config
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.selection import filters

QUARANTINED = "quarantined"  # the verdict on an image without a usable sample


class Verdicts:
    """The verdicts of one selection's filters. A shard is evaluated once, because it never changes.

    Args:
        pool: The pool.
        selection: The filters; ``max_draw`` has no effect.

    Attributes:
        filters: The active filters.

    Raises:
        ConfigError: A filter does not exist.
    """

    def __init__(self, pool: Pool, selection: config.Selection) -> None:
        self.pool, self.filters = pool, filters.active_filters(selection)
        self._verdicts: dict[Shard, list[filters.Reject | None]] = {}
        self._candidates: dict[Shard, filters.Candidates] = {}

    def of(self, shard: Shard) -> list[filters.Reject | None]:
        """Return for each image of a shard None if a plan may take it, or the rejection.

        The cell's earlier shards must be in the store.
        """
        if shard not in self._verdicts:
            verdicts: list[filters.Reject | None] = [
                filters.Reject(QUARANTINED, f"quarantined: {defect}") if defect is not None else None
                for defect in self.pool.rows(shard)["defect"].to_pylist()
            ]
            evaluated = iter(filters.evaluate_filters(self._usable(shard), self.filters))
            self._verdicts[shard] = [verdict or next(evaluated) for verdict in verdicts]
        return self._verdicts[shard]

    def _usable(self, shard: Shard) -> filters.Candidates:
        """Return a shard's candidates with the earlier ones of its cell, which are kept until the next cell."""
        if Shard(shard.label, shard.group, 0) not in self._candidates:
            self._candidates.clear()
        for number in range(len(self._candidates), shard.number + 1):
            current = Shard(shard.label, shard.group, number)
            view = ImageView(self.pool.store, self.pool.names, self.pool.rows(current))
            usable = view.take(np.flatnonzero(view.index["defect"].is_null()))
            self._candidates[current] = filters.Candidates(usable, tuple(self._candidates.values()))
        return self._candidates[shard]

    def accepted(self, shard: Shard) -> Bool[np.ndarray, " n"]:
        """Return a mask of a shard's images that a plan may take."""
        return np.array([verdict is None for verdict in self.of(shard)], dtype=bool)

    def rejects(self, shards: Sequence[Shard]) -> ImageView:
        """Return the images of shards that no plan may take, in order, with columns ``filter`` and ``reason``."""
        view = self.pool.view(shards, [np.flatnonzero(~self.accepted(shard)) for shard in shards])
        verdicts = [verdict for shard in shards for verdict in self.of(shard) if verdict]
        index = view.index.append_column("filter", pa.array([verdict.filter for verdict in verdicts], pa.string()))
        index = index.append_column("reason", pa.array([verdict.reason for verdict in verdicts], pa.string()))
        return ImageView(self.pool.store, self.pool.names, index)

    def available_counts(self) -> Int[np.ndarray, "classes groups"]:
        """Return images per cell that a plan could take now: from the first shard to the first missing one."""
        counts, reached = np.zeros((2, *self.pool.names.shape), dtype=np.int64)
        for shard in sorted(self.pool.shards()):
            cell = shard.label, shard.group
            if shard.number == reached[cell]:
                reached[cell] += 1
                counts[cell] += int(self.accepted(shard).sum())
        return counts
