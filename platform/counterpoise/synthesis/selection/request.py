"""Plan requests: a method's settings for its images that the pool's address does not cover."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from counterpoise.config import Selection

Counts = Int[np.ndarray, "classes groups"]
PlanKey = tuple[str, str]  # method, plan


@dataclass(frozen=True, eq=False)
class PlanRequest:
    """A request for a plan's images. Requests of one method share ``selection`` and ``max_quarantined``.

    Attributes:
        method: The method.
        plan: The plan's name.
        counts: Images wanted per cell.
        skip: Number of first usable images of each cell that are left to other plans.
        selection: The filters, and the bound on images considered.
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
        """Method and plan."""
        return self.method, self.plan

    @property
    def required_count(self) -> Counts:
        """Number of usable images of each cell that the pool must hold."""
        return np.where(self.counts > 0, self.counts + self.skip, 0)
