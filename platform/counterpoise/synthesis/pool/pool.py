"""The pool: synthetic images that are never sampled twice and never change.

A pool is a prefix in the store: ``generation.json`` describes its images, shards hold them. All plans, methods, runs
and clusters with the same generation share one pool.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from counterpoise.config import Experiment
from counterpoise.errors import SynthesisError
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import Store, read
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool.address import folder, provenance
from counterpoise.synthesis.pool.index import PoolIndex
from counterpoise.synthesis.pool.rows import rows_table
from counterpoise.synthesis.pool.shard_spec import ShardSpec
from counterpoise.synthesis.pool.spec import PoolSpec
from counterpoise.synthesis.prompts.prompt_set import PromptSet

if TYPE_CHECKING:
    from counterpoise.synthesis.feedback.classifier import GuideClassifier


@dataclass(frozen=True)
class SamplingCost:
    """Cost of images, as stored with their shards.

    Attributes:
        images: Images of the shards.
        seconds: Seconds that one sampler takes for them. A shard without a record counts as the mean of the others;
            None if none has a record.
    """

    images: int
    seconds: float | None


class Pool:
    """Read access to the addressed, immutable synthetic images of one generation.

    Args:
        spec: Everything that decides the images.
        names: Classes and groups of the dataset.
        store: The store of the pool.
        conditions: The real training images, for a generator that is conditioned on them.
        guide: The guide classifier, if there is one.

    Attributes:
        generation: Everything that decides the images.
        digest: The generation's address.
    """

    def __init__(
        self,
        spec: PoolSpec,
        names: LabelSpace,
        store: Store,
        conditions: ImageView | None = None,
        guide: GuideClassifier | None = None,
    ) -> None:
        self.spec, self.names, self.store = spec, names, store
        self.conditions, self.guide = conditions, guide
        self.generation, self.digest = spec.generation, spec.digest

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        names: LabelSpace,
        store: Store,
        prompts: PromptSet,
        real: ImageView | None = None,
        guide: GuideClassifier | None = None,
    ) -> Pool:
        """Return the pool of an experiment.

        Args:
            experiment: The experiment; its generator, scorer, feedback and shard size decide the address.
            names: Classes and groups of the dataset.
            store: The store of the pool.
            prompts: The prompts; see :func:`counterpoise.synthesis.prompts.resolve.resolve`.
            real: The real training images, for a generator that is conditioned on them.
            guide: The guide classifier, if there is one.

        Raises:
            ConfigError, ModelError: There is no generator, or generator or scorer do not exist.
        """
        conditioned = experiment.generator is not None and experiment.generator.condition is not None
        conditions = real if conditioned else None
        shown = conditions.digest if conditions is not None else None
        spec = PoolSpec.of(experiment, names, prompts, shown, guide.identity if guide is not None else None)
        return cls(spec, names, store, conditions, guide)

    @property
    def shard_size(self) -> int:
        """Images of a shard."""
        return self.spec.shard_size

    @property
    def runtime(self) -> dict[str, Any]:
        """Settings outside the address, by key path; methods that share the pool must agree on them."""
        decoding = {} if self.guide is None else self.guide.settings.model_dump(include={"checkpoint_decoder"})
        return self.spec.runtime | {f"feedback.{key}": value for key, value in decoding.items()}

    @cached_property
    def index(self) -> PoolIndex:
        """The index of the shards in the store; those that other processes commit later are not in it."""
        return PoolIndex(self.store, self.digest, self.shard_size)

    @cached_property
    def recipe(self) -> ShardSpec:
        """Specification of the shards: names, prompts and size."""
        return ShardSpec.of(self.digest, self.names, self.generation)

    def purity(self, ranks: Int[np.ndarray, " m"]) -> Int[np.ndarray, "2 classes groups"]:
        """Return per cell the scored images of shards, and those that CLIP assigns to their requested cell."""
        counts = np.zeros((2, *self.names.shape), dtype=np.int64)
        if len(ranks):
            label, group = (self.index.by_shard(name)[ranks] for name in ("label", "group"))
            of_label, of_group = (self.index.by_shard(f"clip_{name}")[ranks] for name in ("label", "group"))
            scored = of_label >= 0  # a quarantined image has no scores
            right = scored & (of_label == label[:, None])
            if self.names.groups:
                right &= of_group == group[:, None]
            np.add.at(counts, (0, label, group), scored.sum(axis=1))
            np.add.at(counts, (1, label, group), right.sum(axis=1))
        return counts

    def quarantined(self, ranks: Int[np.ndarray, " m"]) -> int:
        """Return the number of images in shards without a usable sample."""
        usable = np.asarray(self.index.column("defect").is_null()).reshape(-1, self.shard_size)
        return int((~usable[ranks]).sum())

    def cost(self, ranks: Int[np.ndarray, " m"]) -> SamplingCost:
        """Return what sampling shards took, whoever sampled them; see :class:`SamplingCost`."""
        seconds = sum(self.index.by_shard(step)[ranks].astype(np.float64) for step in ("sample", "encode"))
        known = np.isfinite(seconds) if len(ranks) else np.zeros(0, bool)
        mean = float(np.mean(seconds[known])) if known.any() else None
        total = None if mean is None and len(ranks) else (mean or 0.0) * len(ranks)
        return SamplingCost(len(ranks) * self.shard_size, total)

    def view(self, rows: Int[np.ndarray, " n"]) -> ImageView:
        """Return a view of rows of the index, in this order."""
        return ImageView(self.store, self.names, rows_table(self.index, self.recipe, rows))

    def prepare(self) -> None:
        """Store the description of this pool's images, or compare with the stored one.

        Raises:
            SynthesisError: ``generation.json`` is damaged or describes another generation.
        """
        record = {"generation": self.generation, "recorded": provenance(self.spec.devices)}
        if not self.store.create(self.description_key, json.dumps(record, indent=1, sort_keys=True).encode()):
            self.check_description()

    @cached_property
    def description_key(self) -> str:
        """Key of ``generation.json`` in the store."""
        return f"{folder(self.digest)}generation.json"

    def check_description(self) -> None:
        """Compare the stored description with this generation; other library versions are a warning.

        Raises:
            SynthesisError: ``generation.json`` is damaged or describes another generation.
            StoreError: There is no description.
        """
        where = f"{self.store.uri}/{self.description_key}"
        try:
            stored = json.loads(read(self.store, self.description_key))
            same, recorded = stored["generation"] == self.generation, dict(stored["recorded"])
        except (ValueError, KeyError, TypeError) as error:
            remedy = "restore this file from a copy, or remove the pool's folder to sample it again"
            raise SynthesisError(
                "the pool's description is damaged", where=where, found=error, remedy=remedy
            ) from error
        if not same:
            remedy = "remove the pool's folder to sample it again"
            raise SynthesisError("the pool's description was changed", where=where, remedy=remedy)
        differences = [
            f"{name} {recorded.get(name)} then, {value} now"
            for name, value in provenance(self.spec.devices).items()
            if recorded.get(name) != value
        ]
        if differences:
            text = "; new images may differ in the last bit from the same images sampled then"
            warnings.warn(
                f"the pool {self.digest} was created with other versions: {', '.join(differences)}{text}", stacklevel=2
            )

    def rate(self) -> float | None:
        """Return images per second of this pool's last sampling, without start-up; None before the first."""
        key = _rate_key(self.digest)
        if not self.store.exists(key):
            return None
        try:
            return float(json.loads(read(self.store, key))["images_per_second"])
        except (ValueError, KeyError, TypeError):
            return None  # a mere estimate: the next run stores it again

    def record_rate(self, images_per_second: float) -> None:
        """Store the rate of the last sampling."""
        record = {"images_per_second": round(images_per_second, 4)}
        self.store.replace(_rate_key(self.digest), json.dumps(record).encode())


def _rate_key(digest: str) -> str:
    return f"{folder(digest)}rate.json"
