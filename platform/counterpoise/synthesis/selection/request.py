"""Plan requests: all that a method says of its images beside what the pool's address covers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from counterpoise.config import Selection

Counts = Int[np.ndarray, "classes groups"]
PlanKey = tuple[str, str]  # method, plan


@dataclass(frozen=True, eq=False)
class PlanRequest:
    """A plan's images, to be taken from a pool. Requests of one method have one ``selection`` and ``max_quarantined``.

    Attributes:
        method: The method that asks.
        plan: The plan's name.
        counts: Images wanted per cell.
        skip: Usable images of each cell that are left to other plans, the first ones.
        selection: The filters that judge, and the bound on what they may look at.
        max_quarantined: The share of quarantined images above which sampling is an error.
    """

    method: str
    plan: str
    counts: Counts
    skip: int
    selection: Selection
    max_quarantined: float

    @property
    def key(self) -> PlanKey:
        return self.method, self.plan

    @property
    def reach(self) -> Counts:
        """Usable images that there must be of each cell."""
        return np.where(self.counts > 0, self.counts + self.skip, 0)
