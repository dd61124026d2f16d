"""What a call draws into the pool, what that costs, and when too much of it is useless."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from counterpoise.errors import SynthesisError
from counterpoise.progress import Progress
from counterpoise.synthesis.address import Shard
from counterpoise.synthesis.pool import Pool

if TYPE_CHECKING:
    from counterpoise.synthesis.sampling import Receipt


class Account:
    """What a call drew, and what that cost.

    Attributes:
        receipts: Of the shards it drew.
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
        return sum(receipt.images for receipt in self.receipts.values())

    def draw(self, shards: Sequence[Shard], considered: Sequence[Shard]) -> None:
        """One round; ends early as soon as it is certain that too many images are quarantined."""
        from counterpoise.synthesis import sampling  # Ray takes seconds to import: a pool that is full needs none

        begun, first, total = time.time(), math.inf, len(shards) * self.pool.shard_size
        bad = sum(_quarantined(self.pool, shard) for shard in considered)
        allowed = self.pool.experiment.pool.max_quarantined * (total + len(considered) * self.pool.shard_size)
        with Progress("sampling", total, "images") as progress:

            def on_receipt(receipt: Receipt) -> None:
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


def _quarantined(pool: Pool, shard: Shard) -> int:
    rows = pool.rows(shard)
    return len(rows) - rows["defect"].null_count
