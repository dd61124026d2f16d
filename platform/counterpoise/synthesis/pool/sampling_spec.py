"""The specification that sampling actors receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from counterpoise import config
from counterpoise.execution.devices import Devices
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.pool import Pool

if TYPE_CHECKING:
    from counterpoise.synthesis.feedback.classifier import GuideClassifier


@dataclass(frozen=True)
class SamplingSpec:
    """Everything that sampling, scoring and committing actors need. Can be pickled."""

    recipe: making.ShardSpec
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
        spec, made = pool.spec, pool.generation
        return cls(
            making.ShardSpec(
                pool.digest,
                pool.names,
                made["prompts"],
                made["plain"],
                made["negative"],
                made["shard_size"],
                made["max_attempts"],
            ),
            spec.generator,
            spec.scorer,
            spec.devices,
            pool.store,
            (spec.sampling.num_cpus, spec.scoring.num_cpus),
            pool.conditions,
            pool.guide,
        )
