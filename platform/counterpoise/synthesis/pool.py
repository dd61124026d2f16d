"""The pool: synthetic images that are never made twice and never change.

A pool is a prefix in the store: ``generation.json`` says what makes its images, shards hold them. It is the same pool
for every plan, method, run and cluster that asks the same of the same generator.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from counterpoise.config import Experiment
from counterpoise.errors import SynthesisError
from counterpoise.store import Store, read
from counterpoise.synthesis import filters
from counterpoise.synthesis.address import Shard, circumstances, digest_of, folder, generation
from counterpoise.synthesis.prompts import PromptSet
from counterpoise.table import Names
from counterpoise.view import View

if TYPE_CHECKING:
    from counterpoise.synthesis.feedback import Teacher
QUARANTINED = "quarantined"  # the verdict on an image without a usable sample


class Pool:
    """What the store holds of an experiment's synthetic images. Reads and addresses; sampling is elsewhere.

    Args:
        experiment: Its generator, prompts, scorer and shard size decide which pool this is.
        names: Classes and groups of the dataset.
        store: Where the pool lies.
        prompts: What is asked for; see :func:`counterpoise.synthesis.resolve.resolve`.
        real: The real training images, for a generator that is conditioned on them.
        teacher: The classifier that guides, if one does.

    Attributes:
        generation: All that decides the images.
        digest: Its address.
        filters: Those that are on.

    Raises:
        ConfigError, ModelError: There is no generator, or a filter, the generator or the scorer do not exist.
    """

    def __init__(
        self,
        experiment: Experiment,
        names: Names,
        store: Store,
        prompts: PromptSet,
        real: View | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.experiment, self.names, self.store = experiment, names, store
        self.prompts, self.teacher = prompts, teacher
        conditioned = experiment.generator is not None and experiment.generator.condition is not None
        self.conditions = real if conditioned else None
        self.generation = generation(
            experiment,
            names,
            prompts,
            self.conditions.digest if self.conditions is not None else None,
            teacher.identity if teacher is not None else None,
        )
        self.digest = digest_of(self.generation)
        self.filters = filters.chosen(experiment.selection)
        self._rows: dict[Shard, pa.Table] = {}
        self._verdicts: dict[Shard, list[filters.Reject | None]] = {}
        self._candidates: dict[Shard, filters.Candidates] = {}

    @property
    def shard_size(self) -> int:
        return self.experiment.pool.shard_size

    def shards(self) -> set[Shard]:
        """The shards that are there now."""
        keys = self.store.list(folder(self.digest))
        return {shard for shard in map(Shard.from_key, keys) if shard is not None}

    def rows(self, shard: Shard) -> pa.Table:
        """A shard's rows as in :attr:`View.index`. Shards never change: each is read once."""
        if shard not in self._rows:
            self._rows[shard] = View.open(self.store, [shard.key(self.digest)]).index
        return self._rows[shard]

    def verdicts(self, shard: Shard) -> list[filters.Reject | None]:
        """For each image of a shard None if a plan may take it, or why not. The cell's earlier shards must be there."""
        if shard not in self._verdicts:
            verdicts: list[filters.Reject | None] = [
                filters.Reject(QUARANTINED, f"quarantined: {defect}") if defect is not None else None
                for defect in self.rows(shard)["defect"].to_pylist()
            ]
            judged = iter(filters.judge(self._usable(shard), self.filters))
            self._verdicts[shard] = [verdict or next(judged) for verdict in verdicts]
        return self._verdicts[shard]

    def _usable(self, shard: Shard) -> filters.Candidates:
        """What filters see of a shard, with its cell up to there. What they read of a cell is kept until the next."""
        if Shard(shard.label, shard.group, 0) not in self._candidates:
            self._candidates.clear()
        for number in range(len(self._candidates), shard.number + 1):
            here = Shard(shard.label, shard.group, number)
            view = View(self.store, self.names, self.rows(here))
            usable = view.take(np.flatnonzero(view.index["defect"].is_null()))
            self._candidates[here] = filters.Candidates(usable, tuple(self._candidates.values()))
        return self._candidates[shard]

    def accepted(self, shard: Shard) -> Bool[np.ndarray, " n"]:
        """Which images of a shard a plan may take."""
        return np.array([verdict is None for verdict in self.verdicts(shard)], dtype=bool)

    def rejects(self, shards: Sequence[Shard]) -> View:
        """The images of shards that no plan may take, in order, with the columns ``filter`` and ``reason``."""
        view = self.view(shards, [np.flatnonzero(~self.accepted(shard)) for shard in shards])
        verdicts = [verdict for shard in shards for verdict in self.verdicts(shard) if verdict]
        index = view.index.append_column("filter", pa.array([verdict.filter for verdict in verdicts], pa.string()))
        index = index.append_column("reason", pa.array([verdict.reason for verdict in verdicts], pa.string()))
        return View(self.store, self.names, index)

    def held(self) -> Int[np.ndarray, "classes groups"]:
        """Images per cell that a plan could take now: from the first shard to the first that is missing."""
        counts, reached = np.zeros((2, *self.names.shape), dtype=np.int64)
        for shard in sorted(self.shards()):
            cell = shard.label, shard.group
            if shard.number == reached[cell]:
                reached[cell] += 1
                counts[cell] += int(self.accepted(shard).sum())
        return counts

    def purity(self, shards: Iterable[Shard]) -> Int[np.ndarray, "2 classes groups"]:
        """Per cell, the scored images of shards, and those that CLIP puts into the cell they were asked for."""
        counts = np.zeros((2, *self.names.shape), dtype=np.int64)
        for shard in shards:
            rows = self.rows(shard)
            label, group = (pc.equal(rows[name], rows[f"clip_{name}"]) for name in ("label", "group"))
            seen = pc.and_(label, group).drop_null()  # a quarantined image was not looked at
            counts[:, shard.label, shard.group] += (len(seen), int(np.sum(seen.to_numpy())))
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
        record = {"generation": self.generation, "recorded": circumstances(self.experiment)}
        if not self.store.create(self.description_key, json.dumps(record, indent=1, sort_keys=True).encode()):
            self.check_description()

    @cached_property
    def description_key(self) -> str:
        return f"{folder(self.digest)}generation.json"

    def check_description(self) -> None:
        """Compares what is written down with what this experiment asks for; other versions are a warning.

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
            for name, value in circumstances(self.experiment).items()
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
