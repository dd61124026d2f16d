"""Ray actors that sample, score and commit one shard at a time.

Each takes and returns a table with one row: the shard's address, its images so far, and the seconds spent. Each imports
only what it needs: diffusers and open_clip take five to ten seconds each.

A user error travels to the driver as a value in the row, because Ray would wrap an exception in its own and print both
tracebacks. Bugs are raised.
"""

from __future__ import annotations

import gc
import hashlib
import pickle
import threading
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from counterpoise.errors import CounterpoiseError, StoreError
from counterpoise.storage.store import Store
from counterpoise.synthesis.pool import segments
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.shard_file import COSTS, from_file, index_row, to_file

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
    """Actor that samples a shard's images and encodes them.

    Two threads may call it: while one samples, which the lock keeps to one at a time, the other encodes the shard
    before.
    """

    def load(self) -> None:
        """Load the generator, condition images and guide classifier."""
        from counterpoise.synthesis.pool.shard_sampler import ShardSampler

        self.threads, self.lock = _one_thread_per_cpu(self.work.cpus[0]), threading.Lock()
        self.models = ShardSampler(self.work)
        self.device = device_name(self.work.devices.generator)

    def step(self, batch: pa.Table) -> pa.Table:
        """Add the shard's table without scores."""
        shard = shard_of(batch)
        with self.lock:
            _one_thread_per_cpu(self.work.cpus[0])  # torch's number of threads is of the calling thread
            started, clock = time.time(), _Clock()
            draft = self.models.draw(shard)
            clock.lap("sample")
        table = making.to_table(draft, self.work.recipe, self.threads)
        clock.lap("encode")
        return row_of(shard, table=making.to_ipc(table), started=started, device=self.device, **clock.laps)


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
        return row_of(shard, table=making.to_ipc(table), **_about(batch), **clock.laps)


class CommitActor(PipelineActor):
    """Actor that writes a shard and its note to the store."""

    def load(self) -> None:
        """Load nothing: there is no model."""

    def step(self, batch: pa.Table) -> pa.Table:
        """Commit the shard, and return the columns of its receipt."""
        shard, clock, about = shard_of(batch), _Clock(), _about(batch)
        table = making.from_ipc(batch["table"][0].as_py())
        created, index = commit(self.work.store, self.work.recipe.digest, shard, table, about)
        clock.lap("commit")
        quarantined = len(table) - table["defect"].null_count
        row = {"created": created, "images": len(table), "quarantined": quarantined, "index": making.to_ipc(index)}
        return row_of(shard, **row, **about, **clock.laps)


def commit(store: Store, digest: str, shard: Shard, table: pa.Table, about: Mapping[str, Any]) -> tuple[bool, pa.Table]:
    """Store a shard and its note; return True if this call stored the shard, and its index row.

    The note comes first, so that a kill loses no cost. If another run stored the shard at the same time, on another
    kind of machine perhaps with other last bits, its note is kept, or made to describe the shard that is stored.

    Args:
        store: The store.
        digest: The pool's address.
        shard: The shard's address.
        table: Its rows.
        about: Its ``device``, and the seconds of its steps.
    """
    data = to_file(table, digest, shard)
    seconds = {step: float(about[step]) for step in COSTS if step in about}
    row = index_row(data, table, shard, about["device"], seconds)
    own = segments.write_note(store, digest, shard, row)
    if created := store.create(key := shard.key(digest), data):
        if not own:
            segments.write_note(store, digest, shard, row, replace=True)
        return created, row
    stored = store.read(key)
    first = _note(store, digest, shard)
    if first is not None and first["sha256"][0].as_py() == hashlib.sha256(stored).digest():
        return created, first
    if stored != data:
        row = index_row(stored, from_file(stored, digest, shard, f"{store.uri}/{key}"), shard)
    segments.write_note(store, digest, shard, row, replace=True)
    return created, row


def _note(store: Store, digest: str, shard: Shard) -> pa.Table | None:
    """Return the row of a shard's note; None if it is damaged, or if another process has just gathered it."""
    try:
        return segments.read_note(store, digest, shard)
    except StoreError:
        return None


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
    return pa.table({name: [value] for name, value in values.items()})


def shard_of(batch: pa.Table) -> Shard:
    """Return the shard of a one-row table."""
    return Shard(*(batch[name][0].as_py() for name in ("label", "group", "number")))


def _about(batch: pa.Table) -> dict[str, Any]:
    """Return what earlier steps said about a shard: start, device, and the seconds of each step."""
    return {name: batch[name][0].as_py() for name in ("started", "device", *STEPS) if name in batch.column_names}


def _one_thread_per_cpu(num_cpus: float) -> int:
    import torch

    threads = max(1, int(num_cpus))
    torch.set_num_threads(threads)
    return threads


def device_name(device: str) -> str:
    """Return the name of a device: ``cpu``, or the GPU's."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device
