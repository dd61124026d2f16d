"""Filling the pool on Ray Data: shards to sample → sampler actors → scoring actors → atomic commits.

One row of the dataset is one shard, in a block of its own, so that no scheduling decides which images share a batch.
What comes back to the driver are receipts. A shard is done when its receipt is here; a missing one is an error.
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

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from counterpoise import config
from counterpoise.errors import ConfigError, SynthesisError, one_of
from counterpoise.execution.cluster import connect
from counterpoise.synthesis.pool.actors import STEPS, CommitActor, SamplingActor, ScoringActor
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.spec import PoolSpec

_RESTARTS = 2  # of each actor, and of each shard: one that kills its worker must not do so for ever


@dataclass(frozen=True)
class Receipt:
    """A shard that is in the store.

    Attributes:
        shard: Which one.
        created: Whether this run put it there; else another run was faster.
        images: How many rows it has.
        quarantined: How many of them are defects.
        started: When its sampling began, in seconds since the epoch.
        seconds: Spent in each step.
    """

    shard: Shard
    created: bool
    images: int
    quarantined: int
    started: float
    seconds: dict[str, float]


def sample(
    pool: Pool, shards: Sequence[Shard], on_receipt: Callable[[Receipt], None] = lambda receipt: None
) -> list[Receipt]:
    """Samples, scores and commits shards; returns when all of them are in the store.

    Args:
        pool: Where they belong.
        shards: Which ones.
        on_receipt: Called for each shard as it is committed; what it raises ends the sampling.

    Raises:
        ConfigError: Scheduler or workers are impossible.
        ModelError: Generator or scorer cannot be loaded.
        StoreError: The store fails.
        SynthesisError: Workers died again and again, or shards did not come back.
    """
    if not shards:
        return []
    spec = pool.spec
    _check_scheduler(spec.generator)
    connect()
    resources = ray.cluster_resources()
    _hint_at_gpus(spec, resources)
    sizes = pool_sizes(spec.sampling, spec.scoring if spec.scorer else None, resources, len(shards))
    pool.prepare()
    receipts: dict[Shard, Receipt] = {}
    dataset = graph(shards, SamplingSpec.of(pool), spec, sizes)
    with _explained(set(shards), receipts), _rays_own_warnings(), closing(_run(dataset)) as arriving:
        for receipt in arriving:
            receipts[receipt.shard] = receipt
            on_receipt(receipt)
    first, last = min(receipt.started for receipt in receipts.values()), time.time()
    images = sum(receipt.images for receipt in receipts.values())
    pool.record_rate(images / max(last - first, 1e-9), sizes.samplers)
    return list(receipts.values())


@dataclass(frozen=True)
class Sizes:
    """How many actors sample, score and commit."""

    samplers: int
    scorers: int
    committers: int


def pool_sizes(
    sampling: config.ActorResources, scoring: config.ActorResources | None, resources: Mapping[str, float], shards: int
) -> Sizes:
    """The actors that the cluster has room for.

    Args:
        sampling: How many samplers are asked for, and what each reserves.
        scoring: The same of scorers; None without a scorer.
        resources: What the cluster has: ``CPU`` and ``GPU``.
        shards: More samplers than shards are of no use.

    Raises:
        ConfigError: The cluster has no room for the actors asked for. They would wait for it for ever.
    """
    scorers, beside = (0, sampling) if scoring is None else (scoring.workers or 1, scoring)
    room = {}
    for kind, own, other in (
        ("CPU", sampling.num_cpus, beside.num_cpus),
        ("GPU", sampling.num_gpus, beside.num_gpus),
    ):
        here = resources.get(kind, 0.0)
        left = here - scorers * other
        if left < own or left < 0:
            where = f"pool.sampling.num_{kind.lower()}s"
            found = f"{own:g} for a sampler and {scorers * other:g} for scorers"
            raise ConfigError(
                f"no room for a sampler on the cluster's {kind}s",
                where=where,
                found=found,
                allowed=f"{here:g} {kind}s in all",
            )
        if own > 0:
            room[kind] = math.floor(left / own + 1e-9)
    most = min(room.values(), default=max(int(resources.get("CPU", 1)), 1))
    wanted = sampling.workers
    if wanted is not None and wanted > most:
        kinds = one_of(f"{resources.get(kind, 0.0):g} {kind}s" for kind in room)
        remedy = "ask for fewer workers, or let each reserve less"
        raise ConfigError(
            "no room for so many samplers",
            where="pool.sampling.workers",
            found=wanted,
            allowed=f"at most {most} on {kinds}",
            remedy=remedy,
        )
    samplers = min(wanted or most, shards)
    return Sizes(samplers, scorers, max(1, samplers // 4))


def graph(shards: Sequence[Shard], work: SamplingSpec, spec: PoolSpec, sizes: Sizes) -> ray.data.Dataset:
    """The dataset whose rows are the receipts of the shards. Nothing runs yet."""
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
                    compute=ActorPoolStrategy(size=size),
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
        text = "the cluster has GPUs, but the samplers reserve none and use CPUs: set pool.sampling.num_gpus=1"
        warnings.warn(text, stacklevel=3)


def _context() -> DataContext:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    context.execution_no_progress_timeout_s = -1  # a shard of large images on a CPU may take an hour
    return context


def _run(dataset: ray.data.Dataset) -> Generator[Receipt]:
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)  # not between the lines of our progress; its log file has it all
    batches: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    with closing(iter(batches)) as blocks:  # closed at once, the actors make room for whatever comes next
        for block in blocks:
            for row in block.to_pylist():
                yield _receipt(row)


def _receipt(row: Mapping[str, Any]) -> Receipt:
    if "failure" in row:
        raise pickle.loads(row["failure"])
    return Receipt(
        Shard(row["label"], row["group"], row["number"]),
        row["created"],
        row["images"],
        row["quarantined"],
        row["started"],
        {name: row[name] for name in STEPS if name in row},
    )


@contextmanager
def _rays_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\.")  # its defaults set what it deprecates
        # max_restarts and max_task_retries have no named arguments yet, and Ray says that those will come
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        yield


@contextmanager
def _explained(asked: set[Shard], receipts: Mapping[Shard, Receipt]) -> Iterator[None]:
    """Turns what Ray raises into what the user can mend, and checks that nothing is missing in the end."""
    try:
        yield
    except RayError as error:
        if "died" not in str(error) or "error raised in its creation task" in str(error):  # the latter is a bug
            raise
        found = next(line for line in str(error).splitlines() if line.strip())
        remedy = "look at the memory: fewer workers, or a smaller pool.shard_size. What is committed is kept"
        raise SynthesisError(
            f"workers died more than {_RESTARTS} times while sampling",
            where=_missing(asked, receipts),
            found=found,
            remedy=remedy,
        ) from error
    if asked - set(receipts):
        remedy = "run the same command again: what is committed is kept"
        raise SynthesisError("some shards did not come back", where=_missing(asked, receipts), remedy=remedy)


def _missing(asked: set[Shard], receipts: Mapping[Shard, Receipt]) -> str:
    lost = sorted(asked - set(receipts))
    names = one_of((f"{shard.label}-{shard.group}/{shard.number:06d}" for shard in lost), 6)
    return f"{len(lost)} of {len(asked)} shards: {names}"
