"""Specification of a pool: the content of its address, and the resources of its workers.

Methods with the same generation share a pool. Their other settings, such as filters and bounds, travel with their
requests: see :mod:`counterpoise.synthesis.selection.request`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from counterpoise.config import ActorResources, Experiment, Generator, Scorer
from counterpoise.execution.devices import Devices, devices
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.pool.address import digest_of, pinned, pixel_identity
from counterpoise.synthesis.prompts.prompt_set import PromptSet


@dataclass(frozen=True)
class PoolSpec:
    """Everything that decides a pool's images, and the devices and resources of its workers, which decide none.

    Attributes:
        generation: Everything that decides pixels and scores; see
            :func:`counterpoise.synthesis.pool.address.pixel_identity`.
        generator: The generator, at the commits that ``generation`` names.
        scorer: The scorer, if there is one.
        devices: The devices of both.
        sampling: The samplers' number and reservations.
        scoring: The scorers' number and reservations.
    """

    generation: dict[str, Any]
    generator: Generator
    scorer: Scorer | None
    devices: Devices
    sampling: ActorResources
    scoring: ActorResources

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        names: LabelSpace,
        prompts: PromptSet,
        conditions: str | None = None,
        feedback: dict[str, Any] | None = None,
    ) -> PoolSpec:
        """Return the specification of an experiment's pool; arguments and errors are :func:`pixel_identity`'s."""
        made = pixel_identity(experiment, names, prompts, conditions, feedback)
        assert experiment.generator is not None
        return cls(
            made,
            pinned(experiment.generator, made),
            experiment.scorer,
            devices(experiment),
            experiment.pool.sampling,
            experiment.pool.scoring,
        )

    @cached_property
    def digest(self) -> str:
        """The pool's address."""
        return digest_of(self.generation)

    @property
    def shard_size(self) -> int:
        """Images of a shard."""
        return self.generation["shard_size"]

    @property
    def max_attempts(self) -> int:
        """Samples per image before it is quarantined."""
        return self.generation["max_attempts"]

    @property
    def runtime(self) -> dict[str, Any]:
        """Settings outside the address, by key path; methods that share the pool must agree on them."""
        return {
            "pool.sampling": self.sampling.model_dump(exclude_defaults=True),
            "pool.scoring": self.scoring.model_dump(exclude_defaults=True),
            "generator.device": self.devices.generator,
            "scorer.device": self.devices.scorer if self.scorer else None,
        }
