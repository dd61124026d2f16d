"""Shards without Ray and without models: what their images are like follows from the address, by the test's rules."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from counterpoise.config import Selection
from counterpoise.generators.text_to_image import to_samples
from counterpoise.synthesis.pool import actors, sampling
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.selection.request import PlanRequest


def ask(plans, skip=None, *, method="m", max_quarantined=0.05, **selection):
    """The requests of a method: plan -> images wanted per cell, and plan -> images to skip; keywords are filters."""
    filters = Selection.model_validate(selection)
    return [
        PlanRequest(method, plan, counts, (skip or {}).get(plan, 0), filters, max_quarantined)
        for plan, counts in plans.items()
    ]


class Filler:
    """Puts shards into a pool.

    Args:
        margin: (label, group, index) -> the image's ``clip_margin``.
        defect: (label, group, index) -> whether it is quarantined; it has no scores then.
        scores: (label, group, index) -> its other columns, such as ``clip_…``.
        seconds: shard -> the seconds of its steps.
    """

    def __init__(
        self,
        margin: Callable[[int, int, int], float] = lambda label, group, index: 1.0,
        defect: Callable[[int, int, int], bool] = lambda label, group, index: False,
        scores: Callable[[int, int, int], dict[str, Any]] = lambda label, group, index: {},
        seconds: Callable[[Shard], dict[str, float]] = lambda shard: {"sample": 0.5, "encode": 0.25},
    ):
        self.margin, self.defect, self.scores, self.seconds, self.rounds = margin, defect, scores, seconds, []

    def put(self, pool, shard):
        recipe, size = SamplingSpec.of(pool).recipe, pool.shard_size
        addresses = [(shard.label, shard.group, shard.number * size + row) for row in range(size)]
        bad = [self.defect(*address) for address in addresses]

        def sample(prompts, negative, seeds):
            attempted = bad if len(seeds) == size else [True] * len(seeds)  # only the bad ones are drawn again
            images = [np.random.default_rng(one).random((4, 4, 3)) for one in seeds]
            return to_samples(np.stack([image * (not is_bad) for image, is_bad in zip(images, attempted, strict=True)]))

        table = making.to_table(making.draw(sample, recipe, shard), recipe)
        rows = [
            {} if is_bad else {"clip_margin": self.margin(*address)} | self.scores(*address)
            for address, is_bad in zip(addresses, bad, strict=True)
        ]
        for name in {name for row in rows for name in row}:
            field = table.schema.field(name)
            values = pa.array([row.get(name) for row in rows], field.type)
            table = table.set_column(table.schema.get_field_index(name), field, values)
        created, row = actors.commit(pool.store, pool.digest, shard, table, {"device": "none", **self.seconds(shard)})
        return sampling.Receipt(shard, created, size, sum(bad), time.time(), self.seconds(shard), row)

    def __call__(self, pool, shards, on_receipt):
        self.rounds.append(sorted(shards))
        receipts = []
        for shard in shards:
            receipts.append(self.put(pool, shard))
            on_receipt(receipts[-1])
        return receipts
