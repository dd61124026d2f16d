"""Sampling in this process, without Ray: of small pools, for previews and for verification."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from counterpoise.errors import ConfigError
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.actors import CommitActor, PipelineActor, SamplingActor, ScoringActor, row_of
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec


def receipts(work: SamplingSpec, shards: Sequence[Shard]) -> Generator[pa.Table]:
    """Sample, score and commit shards one after the other, and yield the row of each; the actors run here.

    A user error is a value in the row, as it is from Ray actors.

    Raises:
        ConfigError: A model computes on a GPU, and this machine has none.
    """
    with _threads_kept():
        _check_device(work.devices.generator, "generator.device", "pool.sampling.num_gpus=0")
        actors: list[PipelineActor] = [SamplingActor(work)]
        if work.scorer is not None:
            _check_device(work.devices.scorer, "scorer.device", "pool.scoring.num_gpus=0")
            actors.append(ScoringActor(work))
        actors.append(CommitActor(work))
        for shard in shards:
            row = row_of(shard)
            for actor in actors:
                row = actor(row)
            yield row


@contextmanager
def sampler_here(work: SamplingSpec) -> Iterator[Callable[[Shard], pa.Table]]:
    """Yield a function that samples a shard in this process and returns its table without scores.

    It serves previews and verification and writes nothing.

    Raises:
        ConfigError: The generator computes on a GPU, and this machine has none.
        ModelError: It cannot be loaded.
    """
    with _threads_kept():
        _check_device(work.devices.generator, "generator.device", "pool.sampling.num_gpus=0")
        sampler = SamplingActor(work)
        if sampler.failure is not None:
            raise sampler.failure

        def sample(shard: Shard) -> pa.Table:
            row = sampler(row_of(shard))
            if "failure" in row.column_names:
                raise pickle.loads(row["failure"][0].as_py())
            return making.from_ipc(row["table"][0].as_py())

        yield sample


def _check_device(device: str, where: str, reservation: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        remedy = f"run this on a machine with a GPU, or set {reservation} and {where}=auto"
        raise ConfigError("this machine has no GPU to sample on", where=where, found="cuda", remedy=remedy)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Restore torch's number of threads, which actors set to their reservation."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
