"""Sampling of shards on Ray Data: shards to sample → sampler actors → scoring actors → atomic commits.

One row of the dataset is one shard, in a block of its own, so that scheduling never decides which images share a batch.
The driver receives receipts. A shard is done when its receipt arrives; a missing receipt is an error. With
``pool.sampling.workers=0`` the actors' steps run in this process.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from counterpoise import config
from counterpoise.errors import ConfigError, SynthesisError, one_of
from counterpoise.execution.cluster import connect
from counterpoise.synthesis.pool import in_process
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.actors import STEPS, CommitActor, SamplingActor, ScoringActor
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.spec import PoolSpec

# A sampler's second thread encodes a shard while the first samples the next.
_OVERLAPPED: dict[str, Any] = {"max_concurrent_calls_per_actor": 2, "enable_true_multi_threading": True}
_RESTARTS = 2  # bound for each actor and each shard: a shard that kills its worker must not do so for ever


@dataclass(frozen=True)
class Receipt:
    """Receipt of a shard that is in the store.

    Attributes:
        shard: The shard.
        created: True if this run stored it; False if another run was faster.
        images: Number of its rows.
        quarantined: Number of rows with a defect.
        started: Start of its sampling, in seconds since the epoch.
        seconds: Seconds spent in each step.
        index: The shard's index row.
    """

    shard: Shard
    created: bool
    images: int
    quarantined: int
    started: float
    seconds: dict[str, float]
    index: pa.Table


def sample(
    pool: Pool, shards: Sequence[Shard], on_receipt: Callable[[Receipt], None] = lambda receipt: None
) -> list[Receipt]:
    """Sample, score and commit shards; return when all of them are in the store.

    Args:
        pool: The pool of the shards.
        shards: The shards to sample.
        on_receipt: Called for each shard as it is committed; an exception ends the sampling.

    Raises:
        ConfigError: The scheduler does not suit the model, or the cluster is too small for the workers.
        ModelError: Generator or scorer cannot be loaded.
        StoreError: The store fails.
        SynthesisError: Workers died repeatedly, or shards are missing.
    """
    if not shards:
        return []
    spec = pool.spec
    _check_scheduler(spec.generator)
    here = spec.sampling.workers == 0
    sizes = Sizes(1, 0, 0) if here else _sizes(spec, len(shards))
    pool.prepare()
    work = SamplingSpec.of(pool)
    rows = in_process.receipts(work, shards) if here else _rows(graph(shards, work, spec, sizes))
    receipts: dict[Shard, Receipt] = {}
    with _explained(set(shards), receipts), _rays_own_warnings(), closing(rows):
        for receipt in map(_receipt, rows):
            receipts[receipt.shard] = receipt
            on_receipt(receipt)
    first, last = min(receipt.started for receipt in receipts.values()), time.time()
    images = sum(receipt.images for receipt in receipts.values())
    pool.record_rate(images / max(last - first, 1e-9))
    return list(receipts.values())


@dataclass(frozen=True)
class Sizes:
    """Numbers of actors that sample, score and commit."""

    samplers: int
    scorers: int
    committers: int


def _sizes(spec: PoolSpec, shards: int) -> Sizes:
    """Connect to Ray, and return the numbers of actors for its resources."""
    connect()
    resources = ray.cluster_resources()
    _hint_at_gpus(spec, resources)
    return pool_sizes(spec.sampling, spec.scoring if spec.scorer else None, resources, shards)


def pool_sizes(
    sampling: config.ActorResources, scoring: config.ActorResources | None, resources: Mapping[str, float], shards: int
) -> Sizes:
    """Return the numbers of actors that fit into the cluster.

    Args:
        sampling: Number of requested samplers, and the resources of each.
        scoring: The same for scorers; None without a scorer.
        resources: The cluster's resources: ``CPU`` and ``GPU``.
        shards: Number of shards, the upper bound on samplers.

    Raises:
        ConfigError: The cluster is too small for the requested actors, which would wait for ever.
    """
    scorers, scorer = (0, sampling) if scoring is None else (scoring.workers or 1, scoring)
    room = {}
    for kind, each, other in (
        ("CPU", sampling.num_cpus, scorer.num_cpus),
        ("GPU", sampling.num_gpus, scorer.num_gpus),
    ):
        total = resources.get(kind, 0.0)
        available = total - scorers * other
        if available < each or available < 0:
            where = f"pool.sampling.num_{kind.lower()}s"
            found = f"{each:g} for a sampler and {scorers * other:g} for scorers"
            raise ConfigError(
                f"the cluster has too few {kind}s for a sampler",
                where=where,
                found=found,
                allowed=f"{total:g} {kind}s in all",
            )
        if each > 0:
            room[kind] = math.floor(available / each + 1e-9)
    most = min(room.values(), default=max(int(resources.get("CPU", 1)), 1))
    requested = sampling.workers
    if requested is not None and requested > most:
        kinds = one_of(f"{resources.get(kind, 0.0):g} {kind}s" for kind in room)
        remedy = "set fewer workers, or let each reserve less"
        raise ConfigError(
            "the cluster is too small for so many samplers",
            where="pool.sampling.workers",
            found=requested,
            allowed=f"at most {most} on {kinds}",
            remedy=remedy,
        )
    samplers = min(requested or most, shards)
    return Sizes(samplers, scorers, max(1, samplers // 4))


def graph(shards: Sequence[Shard], work: SamplingSpec, spec: PoolSpec, sizes: Sizes) -> ray.data.Dataset:
    """Return the lazy dataset whose rows are the receipts of the shards."""
    rows = [{"label": shard.label, "group": shard.group, "number": shard.number} for shard in shards]
    with _rays_own_warnings(), DataContext.current(_context()):
        dataset: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
        # Committers reserve nothing: samplers that fill the cluster would keep them waiting until the end. They are
        # actors as well, because Ray ends a task's idle process after a second and pays another start for the next.
        stages: list[tuple[Any, int, float, float]] = [
            (SamplingActor, sizes.samplers, spec.sampling.num_cpus, spec.sampling.num_gpus),
            (ScoringActor, sizes.scorers, spec.scoring.num_cpus, spec.scoring.num_gpus),
            (CommitActor, sizes.committers, 0, 0),
        ]
        for stage, size, num_cpus, num_gpus in stages:
            if size:
                dataset = dataset.map_batches(
                    stage,
                    fn_constructor_args=(work,),
                    batch_size=1,
                    batch_format="pyarrow",
                    compute=ActorPoolStrategy(size=size, **(_OVERLAPPED if stage is SamplingActor else {})),
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                    max_restarts=_RESTARTS,
                    max_task_retries=_RESTARTS,
                )
        return dataset


def _check_scheduler(generator: config.Generator) -> None:
    if generator.scheduler is not None:
        from counterpoise.generators.text_to_image import check

        check(generator)


def _hint_at_gpus(spec: PoolSpec, resources: Mapping[str, float]) -> None:
    if resources.get("GPU", 0) > 0 and spec.devices.generator == "cpu":
        text = "the cluster has GPUs, but the samplers reserve none and run on CPUs: set pool.sampling.num_gpus=1"
        warnings.warn(text, stacklevel=3)


def _context() -> DataContext:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    context.execution_no_progress_timeout_s = -1  # a shard of large images on a CPU may take an hour
    return context


def _rows(dataset: ray.data.Dataset) -> Generator[pa.Table]:
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)  # keeps the progress lines clean; Ray's log file has everything
    batches: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    with closing(iter(batches)) as blocks:  # closing at once frees the actors' resources for the next step
        for block in blocks:
            for number in range(len(block)):
                yield block.slice(number, 1)


def _receipt(table: pa.Table) -> Receipt:
    (row,) = table.to_pylist()
    if "failure" in row:
        raise pickle.loads(row["failure"])
    return Receipt(
        Shard(row["label"], row["group"], row["number"]),
        row["created"],
        row["images"],
        row["quarantined"],
        row["started"],
        {name: row[name] for name in STEPS if name in row},
        making.from_ipc(row["index"]),
    )


@contextmanager
def _rays_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\.")  # its defaults set what it deprecates
        # max_restarts and max_task_retries have no named arguments yet, and Ray announces them
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        yield


@contextmanager
def _explained(shards: set[Shard], receipts: Mapping[Shard, Receipt]) -> Iterator[None]:
    """Turn Ray's errors into errors with a remedy, and check that no shard is missing at the end."""
    try:
        yield
    except RayError as error:
        if "died" not in str(error) or "error raised in its creation task" in str(error):  # the latter is a bug
            raise
        found = next(line for line in str(error).splitlines() if line.strip())
        remedy = "check memory use: try fewer workers, or a smaller pool.shard_size. Committed shards are kept"
        raise SynthesisError(
            f"workers died more than {_RESTARTS} times while sampling",
            where=_missing(shards, receipts),
            found=found,
            remedy=remedy,
        ) from error
    if shards - set(receipts):
        remedy = "run the same command again: committed shards are kept"
        raise SynthesisError("some shards are missing after sampling", where=_missing(shards, receipts), remedy=remedy)


def _missing(shards: set[Shard], receipts: Mapping[Shard, Receipt]) -> str:
    lost = sorted(shards - set(receipts))
    names = one_of((f"{shard.label}-{shard.group}/{shard.number:06d}" for shard in lost), 6)
    return f"{len(lost)} of {len(shards)} shards: {names}"
