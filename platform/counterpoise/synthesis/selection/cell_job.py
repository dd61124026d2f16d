"""Judgement of one cell's shards by image filters, apart from the pool: it can run on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from counterpoise import config
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.selection import filters
from counterpoise.synthesis.selection.filters import ColumnFilter, Reject


@dataclass(frozen=True)
class CellJob:
    """The shards of a cell, from the first on, and the number of accepted images that suffice. Can be pickled.

    Attributes:
        views: Usable images of each shard.
        pending: For each shard a mask of the images that no column filter rejects.
        enough: Accepted images after which no further shard is judged.
        selection: The filters.
    """

    views: Sequence[ImageView]
    pending: Sequence[Bool[np.ndarray, " _"]]
    enough: int
    selection: config.Selection

    def run(self) -> list[list[Reject | None]]:
        """Return the image filters' verdicts on the images of each shard, up to the last one that is needed."""
        active = [one for one in filters.active_filters(self.selection) if not isinstance(one.function, ColumnFilter)]
        candidates: list[filters.Candidates] = []
        verdicts: list[list[Reject | None]] = []
        accepted = 0
        for view, pending in zip(self.views, self.pending, strict=True):
            if accepted >= self.enough:
                break
            candidates.append(filters.Candidates(view, tuple(candidates)))
            verdicts.append(filters.evaluate_filters(candidates[-1], active))
            accepted += sum(verdict is None for verdict in np.array(verdicts[-1], dtype=object)[pending])
        return verdicts


def run(job: CellJob) -> list[list[Reject | None]]:
    """Run a job; a function that Ray can send."""
    return job.run()
