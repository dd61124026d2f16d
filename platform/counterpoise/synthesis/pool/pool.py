"""The pool: synthetic images that are never made twice and never change.

A pool is a prefix in the store: ``generation.json`` says what makes its images, shards hold them. It is the same pool
for every plan, method, run and cluster that asks the same of the same generator.
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
    """What the store holds of a specification's synthetic images. Reads and addresses; sampling is elsewhere.

    Args:
        spec: All that decides the images.
        names: Classes and groups of the dataset.
        store: Where the pool lies.
        conditions: The real training images, for a generator that is conditioned on them.
        teacher: The classifier that guides, if one does.

    Attributes:
        generation: All that decides the images.
        digest: Its address.
    """

    def __init__(
        self,
        spec: PoolSpec,
        names: LabelSpace,
        store: Store,
        conditions: ImageView | None = None,
        teacher: GuideClassifier | None = None,
    ) -> None:
        self.spec, self.names, self.store = spec, names, store
        self.conditions, self.teacher = conditions, teacher
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
        teacher: GuideClassifier | None = None,
    ) -> Pool:
        """The pool of an experiment.

        Args:
            experiment: Its generator, scorer, feedback and shard size decide which pool this is.
            names: Classes and groups of the dataset.
            store: Where the pool lies.
            prompts: What is asked for; see :func:`counterpoise.synthesis.prompts.resolve.resolve`.
            real: The real training images, for a generator that is conditioned on them.
            teacher: The classifier that guides, if one does.

        Raises:
            ConfigError, ModelError: There is no generator, or generator or scorer do not exist.
        """
        conditioned = experiment.generator is not None and experiment.generator.condition is not None
        conditions = real if conditioned else None
        shown = conditions.digest if conditions is not None else None
        spec = PoolSpec.of(experiment, names, prompts, shown, teacher.identity if teacher is not None else None)
        return cls(spec, names, store, conditions, teacher)

    @property
    def shard_size(self) -> int:
        return self.spec.shard_size

    @property
    def runtime(self) -> dict[str, Any]:
        """What the address does not cover, by key path: methods that share the pool must agree on it."""
        decoding = {} if self.teacher is None else self.teacher.settings.model_dump(include={"checkpoint_decoder"})
        return self.spec.runtime | {f"feedback.{key}": value for key, value in decoding.items()}

    def shards(self) -> set[Shard]:
        """The shards that are there now."""
        keys = self.store.list(folder(self.digest))
        return {shard for shard in map(Shard.from_key, keys) if shard is not None}

    def rows(self, shard: Shard) -> pa.Table:
        """A shard's rows as in :attr:`ImageView.index`. Shards never change: each is read once."""
        if shard not in self._rows:
            self._rows[shard] = ImageView.open(self.store, [shard.key(self.digest)]).index
        return self._rows[shard]

    def purity(self, shards: Iterable[Shard]) -> Int[np.ndarray, "2 classes groups"]:
        """Per cell, the scored images of shards, and those that CLIP puts into the cell they were asked for."""
        counts = np.zeros((2, *self.names.shape), dtype=np.int64)
        for shard in shards:
            rows = self.rows(shard)
            label, group = (pc.equal(rows[name], rows[f"clip_{name}"]) for name in ("label", "group"))
            seen = pc.and_(label, group).drop_null()  # a quarantined image was not looked at
            counts[:, shard.label, shard.group] += (len(seen), int(np.sum(seen.to_numpy())))
        return counts

    def view(self, shards: Iterable[Shard], taken: Iterable[Int[np.ndarray, " _"]]) -> ImageView:
        """The rows ``taken[i]`` of ``shards[i]``, in this order."""
        parts = [self.rows(shard).take(pa.array(rows)) for shard, rows in zip(shards, taken, strict=True)]
        parts = [part for part in parts if len(part)]
        return (
            ImageView(self.store, self.names, pa.concat_tables(parts))
            if parts
            else ImageView.empty(self.store, self.names)
        )

    def prepare(self) -> None:
        """Writes down what makes this pool's images, or compares with what is written there.

        Raises:
            SynthesisError: ``generation.json`` is damaged or speaks of something else.
        """
        record = {"generation": self.generation, "recorded": provenance(self.spec.devices)}
        if not self.store.create(self.description_key, json.dumps(record, indent=1, sort_keys=True).encode()):
            self.check_description()

    @cached_property
    def description_key(self) -> str:
        return f"{folder(self.digest)}generation.json"

    def check_description(self) -> None:
        """Compares what is written down with what is asked for now; other versions are a warning.

        Raises:
            SynthesisError: ``generation.json`` is damaged or speaks of something else.
            StoreError: It is not there.
        """
        where = f"{self.store.uri}/{self.description_key}"
        try:
            found = json.loads(read(self.store, self.description_key))
            same, recorded = found["generation"] == self.generation, dict(found["recorded"])
        except (ValueError, KeyError, TypeError) as error:
            remedy = "put back a copy of this file, or remove the pool's folder to sample it anew"
            raise SynthesisError(
                "the pool's description is damaged", where=where, found=error, remedy=remedy
            ) from error
        if not same:
            remedy = "remove the pool's folder to sample it anew"
            raise SynthesisError("the pool's description was changed", where=where, remedy=remedy)
        differences = [
            f"{name} {recorded.get(name)} then, {value} now"
            for name, value in provenance(self.spec.devices).items()
            if recorded.get(name) != value
        ]
        if differences:
            text = "; new images may differ from the old ones in the last bit"
            warnings.warn(f"the pool {self.digest} was begun with {', '.join(differences)}{text}", stacklevel=2)

    def rate(self) -> float | None:
        """Images per second when images of this pool were last sampled, start-up aside; None if they never were."""
        found = _rate(self.store, self.digest)
        return None if found is None else found[0]

    def record_rate(self, images_per_second: float, workers: int) -> None:
        record = {"images_per_second": round(images_per_second, 4), "workers": workers}
        self.store.replace(_rate_key(self.digest), json.dumps(record).encode())


def sampler_seconds(store: Store, digest: str) -> float | None:
    """Seconds of a sampler's time that an image of a pool took when they were last sampled; None if they never were."""
    found = _rate(store, digest)
    return found[1] / found[0] if found else None


def _rate_key(digest: str) -> str:
    return f"{folder(digest)}rate.json"


def _rate(store: Store, digest: str) -> tuple[float, int] | None:
    """Images per second, and with how many samplers."""
    if not store.exists(_rate_key(digest)):
        return None
    try:
        found = json.loads(read(store, _rate_key(digest)))
        return float(found["images_per_second"]), int(found["workers"])
    except (ValueError, KeyError, TypeError):
        return None  # a progress marker, not a result: the next run writes it again
