"""The pool: synthetic images that are never made twice and never change.

A pool is a prefix in the store: ``generation.json`` says what makes its images, shards hold them. It is the same pool
for every plan, method, run and cluster that asks the same of the same generator.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from counterpoise.config import Experiment
from counterpoise.errors import SynthesisError
from counterpoise.store import Store, read
from counterpoise.synthesis.address import Shard, circumstances, digest_of, folder, generation
from counterpoise.synthesis.prompts import PromptSet
from counterpoise.table import Names
from counterpoise.view import View


class Pool:
    """What the store holds of an experiment's synthetic images. Reads and addresses; sampling is elsewhere.

    Args:
        experiment: Its generator, prompts, scorer and shard size decide which pool this is.
        names: Classes and groups of the dataset.
        store: Where the pool lies.
        prompts: What is asked for; see :func:`counterpoise.synthesis.resolve.resolve`.

    Attributes:
        generation: All that decides the images.
        digest: Its address.

    Raises:
        ConfigError, ModelError: There is no generator, or generator or scorer do not exist.
    """

    def __init__(self, experiment: Experiment, names: Names, store: Store, prompts: PromptSet) -> None:
        self.experiment, self.names, self.store, self.prompts = experiment, names, store, prompts
        self.generation = generation(experiment, names, prompts)
        self.digest = digest_of(self.generation)
        self._rows: dict[Shard, pa.Table] = {}

    @property
    def shard_size(self) -> int:
        return self.experiment.pool.shard_size

    def shards(self) -> set[Shard]:
        """The shards that are there now."""
        keys = self.store.list(folder(self.digest))
        return {shard for shard in map(Shard.from_key, keys) if shard is not None}

    def rows(self, shard: Shard) -> pa.Table:
        """A shard's rows as in :attr:`View.index`, without images. Shards never change: each is read once."""
        if shard not in self._rows:
            self._rows[shard] = View.open(self.store, [shard.key(self.digest)]).index
        return self._rows[shard]

    def accepted(self, shard: Shard) -> Bool[np.ndarray, " n"]:
        """Which images of a shard a plan may take: not quarantined, and clear enough of their rivals."""
        return acceptable(self.rows(shard), self.experiment.selection.clip_margin)

    def held(self) -> Int[np.ndarray, "classes groups"]:
        """Usable images per cell."""
        counts = np.zeros(self.names.shape, dtype=np.int64)
        for shard in self.shards():
            counts[shard.label, shard.group] += int(self.accepted(shard).sum())
        return counts

    def view(self, shards: Iterable[Shard], taken: Iterable[Int[np.ndarray, " _"]]) -> View:
        """The rows ``taken[i]`` of ``shards[i]``, in this order."""
        parts = [self.rows(shard).take(pa.array(rows)) for shard, rows in zip(shards, taken, strict=True)]
        parts = [part for part in parts if len(part)]
        return View(self.store, self.names, pa.concat_tables(parts)) if parts else View.empty(self.store, self.names)

    def prepare(self) -> None:
        """Writes down what makes this pool's images, or compares with what is written there.

        Raises:
            SynthesisError: ``generation.json`` is damaged or speaks of something else.
        """
        key = f"{folder(self.digest)}generation.json"
        record = {"generation": self.generation, "recorded": circumstances(self.experiment)}
        if self.store.create(key, json.dumps(record, indent=1, sort_keys=True).encode()):
            return
        where = f"{self.store.uri}/{key}"
        try:
            found = json.loads(read(self.store, key))
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
            for name, value in record["recorded"].items()
            if recorded.get(name) != value
        ]
        if differences:
            text = "; new images may differ from the old ones in the last bit"
            warnings.warn(f"the pool {self.digest} was begun with {', '.join(differences)}{text}", stacklevel=2)

    @cached_property
    def _rate_key(self) -> str:
        return f"{folder(self.digest)}rate.json"

    def rate(self) -> float | None:
        """Images per second when images of this pool were last sampled, start-up aside; None if they never were."""
        if not self.store.exists(self._rate_key):
            return None
        try:
            return float(json.loads(read(self.store, self._rate_key))["images_per_second"])
        except (ValueError, KeyError, TypeError):
            return None  # a progress marker, not a result: the next run writes it again

    def record_rate(self, images_per_second: float, workers: int) -> None:
        record = {"images_per_second": round(images_per_second, 4), "workers": workers}
        self.store.replace(self._rate_key, json.dumps(record).encode())


def acceptable(rows: pa.Table, clip_margin: float | None) -> Bool[np.ndarray, " n"]:
    """Which rows are no defects and, if a margin is asked for, have at least that one."""
    good = np.asarray(pc.is_null(rows["defect"]))
    if clip_margin is None:
        return good
    clear = pc.greater_equal(rows["clip_margin"].cast(pa.float64()), clip_margin)
    return good & np.asarray(pc.fill_null(clear, False))
