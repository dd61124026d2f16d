"""The specification that sampling actors receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from counterpoise import config
from counterpoise.execution.devices import Devices
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.shard_spec import ShardSpec

if TYPE_CHECKING:
    from counterpoise.synthesis.feedback.classifier import GuideClassifier


@dataclass(frozen=True)
class SamplingSpec:
    """Everything that sampling, scoring and committing actors need. Can be pickled."""

    recipe: ShardSpec
    generator: config.Generator
    scorer: config.Scorer | None
    devices: Devices
    store: Store
    cpus: tuple[float, float]  # for a sampler, for a scorer
    conditions: ImageView | None
    guide: GuideClassifier | None

    @classmethod
    def of(cls, pool: Pool) -> SamplingSpec:
        """Return the specification for a pool."""
        spec = pool.spec
        return cls(
            pool.recipe,
            spec.generator,
            spec.scorer,
            spec.devices,
            pool.store,
            (spec.sampling.num_cpus, spec.scoring.num_cpus),
            pool.conditions,
            pool.guide,
        )
