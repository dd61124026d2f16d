"""Sampling rounds of one call: receipts, cost by step, and the quarantine limit."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from counterpoise.core.progress import Progress
from counterpoise.errors import SynthesisError, one_of
from counterpoise.synthesis.pool import segments
from counterpoise.synthesis.pool.address import Shard, folder
from counterpoise.synthesis.pool.pool import Pool

if TYPE_CHECKING:
    from counterpoise.synthesis.pool.sampling import Receipt


class SamplingRun:
    """The sampling rounds of one call, and their cost.

    Attributes:
        receipts: Receipts of the shards sampled.
        sampling: Seconds between the first sample and the last commit, over all rounds.
        cost: Seconds by step, summed over workers.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.receipts: dict[Shard, Receipt] = {}
        self.sampling = 0.0
        self.cost: dict[str, float] = {}

    @property
    def images(self) -> int:
        """Number of images sampled."""
        return sum(receipt.images for receipt in self.receipts.values())

    def draw(self, shards: Sequence[Shard], limits: Sequence[QuarantineLimit]) -> None:
        """Sample one round; stop early once a method's quarantine limit is certain to be exceeded."""
        from counterpoise.synthesis.pool import sampling  # imports Ray, which takes seconds; a full pool needs none

        index, rows = self.pool.index, list[pa.Table]()
        begun, first, total = time.time(), math.inf, len(shards) * self.pool.shard_size
        with Progress("sampling", total, "images") as progress:

            def on_receipt(receipt: Receipt) -> None:
                nonlocal first
                if receipt.started < first:
                    first = receipt.started
                    progress.restart_clock(time.time() - first)
                self.receipts[receipt.shard] = receipt
                rows.append(receipt.index)
                if len(rows) == segments.SHARDS:  # written now, so that little is left to read after a kill
                    index.add(rows)
                    rows.clear()
                for limit in limits:
                    limit.count(receipt)
                bad = max((limit.bad for limit in limits), default=0)
                progress.advance(receipt.images, f"{bad} quarantined" if bad else "")
                for limit in limits:
                    limit.check()

            try:
                receipts = sampling.sample(self.pool, shards, on_receipt)
            finally:
                index.add(rows)
        self.sampling += time.time() - first
        self._charge("startup", first - begun)
        for receipt in receipts:
            for step, seconds in receipt.seconds.items():
                self._charge(step, seconds)

    def _charge(self, step: str, seconds: float) -> None:
        self.cost[step] = self.cost.get(step, 0.0) + seconds


class QuarantineLimit:
    """Limit on images without a usable sample among those that a method considers.

    Args:
        pool: The pool of the images.
        share: ``pool.max_quarantined`` of the method.
        considered: Ranks of the shards that it has considered so far.
        asked: Shards that it requests now.
    """

    def __init__(
        self, pool: Pool, share: float, considered: Int[np.ndarray, " n"], asked: Sequence[Shard] = ()
    ) -> None:
        self.pool, self.share, self.asked = pool, share, set(asked)
        self.total = len(considered) * pool.shard_size
        self.allowed = share * (self.total + len(self.asked) * pool.shard_size)
        self.bad = pool.quarantined(considered)
        self._defects = Counter[str]()
        if self.bad > self.allowed:
            rows = pool.index.column("defect").combine_chunks()
            taken = (considered[:, None] * pool.shard_size + np.arange(pool.shard_size)).ravel()
            self._defects.update(rows.take(pa.array(taken)).drop_null().to_pylist())

    def count(self, receipt: Receipt) -> None:
        """Count a sampled shard, if it was requested."""
        if receipt.shard in self.asked:
            self.bad, self.total = self.bad + receipt.quarantined, self.total + receipt.images
            self._defects.update(receipt.index["defect"][0].values.drop_null().to_pylist())

    def check(self) -> None:
        """Raise SynthesisError if more images are quarantined than the limit over all requested shards allows."""
        if self.bad <= self.allowed:
            return
        raise SynthesisError(
            "the generator makes too many unusable images",
            where=f"{self.pool.store.uri}/{folder(self.pool.digest)}",
            found=f"{self.bad} of {self.total} images quarantined: {one_of(sorted(self._defects), 3)}",
            allowed=f"a share of {self.share:g} (pool.max_quarantined)",
            remedy="check generator.dtype (float16 overflows in some models), guidance_scale and the prompts",
        )
