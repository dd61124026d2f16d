"""Ray actors that sample, score and commit one shard at a time.

Each takes and returns a table with one row: the shard's address, its images so far, and the seconds spent. Each imports
only what it needs: diffusers and open_clip take five to ten seconds each.

A user error travels to the driver as a value in the row, because Ray would wrap an exception in its own and print both
tracebacks. Bugs are raised.
"""

from __future__ import annotations

import gc
import pickle
import time
from typing import Any

import pyarrow as pa

from counterpoise.errors import CounterpoiseError
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec

STEPS = ("sample", "encode", "score", "commit")


class PipelineActor:
    """Base of the actors: :meth:`load` once, then :meth:`step` on one row at a time."""

    def __init__(self, work: SamplingSpec) -> None:
        self.work, self.failure = work, None
        gc.disable()  # what is loaded stays: looking through it again and again takes a fifth of the time
        try:
            self.load()
        except CounterpoiseError as error:
            self.failure = error
        finally:
            gc.enable()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the row after this step; a user error, of this actor or an earlier one, is passed on in the row."""
        if "failure" in batch.column_names:
            return batch
        try:
            if self.failure is not None:
                raise self.failure
            return self.step(batch)
        except CounterpoiseError as error:
            return row_of(shard_of(batch), failure=pickle.dumps(error))

    def load(self) -> None:
        """Load the actor's models."""
        raise NotImplementedError

    def step(self, batch: pa.Table) -> pa.Table:
        """Process one row."""
        raise NotImplementedError


class SamplingActor(PipelineActor):
    """Actor that samples a shard's images and encodes them."""

    def load(self) -> None:
        """Load the generator, condition images and guide classifier."""
        from counterpoise.synthesis.pool.shard_sampler import ShardSampler

        self.threads = _one_thread_per_cpu(self.work.cpus[0])
        self.models = ShardSampler(self.work)

    def step(self, batch: pa.Table) -> pa.Table:
        """Add the shard's table without scores."""
        shard, started, clock = shard_of(batch), time.time(), _Clock()
        draft = self.models.draw(shard)
        clock.lap("sample")
        table = making.to_table(draft, self.work.recipe, shard, self.threads)
        clock.lap("encode")
        return row_of(shard, table=making.to_ipc(table), started=started, **clock.laps)


class ScoringActor(PipelineActor):
    """Actor that scores a shard's images with CLIP."""

    def load(self) -> None:
        """Load the scorer and embed the plain prompts."""
        from counterpoise.scoring.clip import Clip

        assert self.work.scorer is not None
        _one_thread_per_cpu(self.work.cpus[1])
        self.clip = Clip(self.work.scorer, self.work.devices.scorer)
        self.texts = self.clip.embed_texts(self.work.recipe.all_plain)

    def step(self, batch: pa.Table) -> pa.Table:
        """Add the scores to the shard's table."""
        shard, clock = shard_of(batch), _Clock()
        table = making.from_ipc(batch["table"][0].as_py())
        table = making.score(self.clip, self.texts, self.work.recipe, shard, table)
        clock.lap("score")
        return row_of(shard, table=making.to_ipc(table), started=batch["started"][0], **_laps_of(batch), **clock.laps)


class CommitActor(PipelineActor):
    """Actor that writes a shard to the store."""

    def load(self) -> None:
        """Load nothing: there is no model."""

    def step(self, batch: pa.Table) -> pa.Table:
        """Commit the shard, and return the columns of its receipt."""
        shard, clock = shard_of(batch), _Clock()
        table = making.from_ipc(batch["table"][0].as_py())
        created = self.work.store.create(shard.key(self.work.recipe.digest), making.to_parquet(table))
        clock.lap("commit")
        return row_of(
            shard,
            created=created,
            images=len(table),
            quarantined=len(table) - table["defect"].null_count,
            started=batch["started"][0],
            **_laps_of(batch),
            **clock.laps,
        )


class _Clock:
    """Seconds between calls of ``lap``, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def row_of(shard: Shard, **columns: Any) -> pa.Table:
    """Return a shard's address and other columns as a table with one row."""
    values = {"label": shard.label, "group": shard.group, "number": shard.number, **columns}
    return pa.table({name: pa.array([value]) for name, value in values.items()})


def shard_of(batch: pa.Table) -> Shard:
    """Return the shard of a one-row table."""
    return Shard(*(batch[name][0].as_py() for name in ("label", "group", "number")))


def _laps_of(batch: pa.Table) -> dict[str, float]:
    return {name: batch[name][0].as_py() for name in STEPS if name in batch.column_names}


def _one_thread_per_cpu(num_cpus: float) -> int:
    import torch

    threads = max(1, int(num_cpus))
    torch.set_num_threads(threads)
    return threads
