"""The pool: synthetic images that are never sampled twice and never change.

A pool is a prefix in the store: ``generation.json`` describes its images, shards hold them. All plans, methods, runs
and clusters with the same generation share one pool.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from counterpoise.config import Experiment
from counterpoise.errors import SynthesisError
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import Store, read
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool.address import Shard, folder, provenance
from counterpoise.synthesis.pool.spec import PoolSpec
from counterpoise.synthesis.prompts.prompt_set import PromptSet

if TYPE_CHECKING:
    from counterpoise.synthesis.feedback.classifier import GuideClassifier


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
        self._rows: dict[Shard, pa.Table] = {}

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

    def shards(self) -> set[Shard]:
        """Return the shards that are in the store now."""
        keys = self.store.list(folder(self.digest))
        return {shard for shard in map(Shard.from_key, keys) if shard is not None}

    def rows(self, shard: Shard) -> pa.Table:
        """Return a shard's rows as in :attr:`ImageView.index`; each shard is read once, because it never changes."""
        if shard not in self._rows:
            self._rows[shard] = ImageView.open(self.store, [shard.key(self.digest)]).index
        return self._rows[shard]

    def purity(self, shards: Iterable[Shard]) -> Int[np.ndarray, "2 classes groups"]:
        """Return per cell the scored images of shards, and those that CLIP assigns to their requested cell."""
        counts = np.zeros((2, *self.names.shape), dtype=np.int64)
        for shard in shards:
            rows = self.rows(shard)
            label, group = (pc.equal(rows[name], rows[f"clip_{name}"]) for name in ("label", "group"))
            agrees = pc.and_(label, group).drop_null()  # a quarantined image has no scores
            counts[:, shard.label, shard.group] += (len(agrees), int(np.sum(agrees.to_numpy())))
        return counts

    def view(self, shards: Iterable[Shard], taken: Iterable[Int[np.ndarray, " _"]]) -> ImageView:
        """Return the rows ``taken[i]`` of ``shards[i]``, in this order."""
        parts = [self.rows(shard).take(pa.array(rows)) for shard, rows in zip(shards, taken, strict=True)]
        parts = [part for part in parts if len(part)]
        return (
            ImageView(self.store, self.names, pa.concat_tables(parts))
            if parts
            else ImageView.empty(self.store, self.names)
        )

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
        rate = _rate(self.store, self.digest)
        return None if rate is None else rate[0]

    def record_rate(self, images_per_second: float, workers: int) -> None:
        """Store the rate and the number of samplers of the last sampling."""
        record = {"images_per_second": round(images_per_second, 4), "workers": workers}
        self.store.replace(_rate_key(self.digest), json.dumps(record).encode())


def sampler_seconds(store: Store, digest: str) -> float | None:
    """Return a sampler's seconds per image in a pool's last sampling; None before the first."""
    rate = _rate(store, digest)
    return rate[1] / rate[0] if rate else None


def _rate_key(digest: str) -> str:
    return f"{folder(digest)}rate.json"


def _rate(store: Store, digest: str) -> tuple[float, int] | None:
    """Return images per second, and the number of samplers."""
    if not store.exists(_rate_key(digest)):
        return None
    try:
        record = json.loads(read(store, _rate_key(digest)))
        return float(record["images_per_second"]), int(record["workers"])
    except (ValueError, KeyError, TypeError):
        return None  # a mere estimate: the next run stores it again
