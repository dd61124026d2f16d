"""Fits on several workers under Ray Train (v2).

Ray Train starts the workers, connects them and restarts the whole group when one dies. The checkpoint in the store is
the only record of a fit's progress. Ray's own storage is a temporary folder for its bookkeeping, and every call has a
unique name, because Ray Train silently resumes a run whose name it knows.
"""

from __future__ import annotations

import tempfile
import uuid
import warnings
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig

from counterpoise.config import Training
from counterpoise.errors import ConfigError, CounterpoiseError
from counterpoise.execution import cluster
from counterpoise.training.engine.fit import fit
from counterpoise.training.engine.process_group import Worker
from counterpoise.training.engine.task import Fit, OnEpoch


def fit_with_ray(task: Fit, on_epoch: OnEpoch | None) -> None:
    """Run :func:`counterpoise.training.engine.fit.fit` in ``training.num_workers`` Ray Train workers.

    Raises:
        ConfigError: The cluster is too small for the workers.
        ray.train.TrainingFailedError: The workers died more than ``training.max_failures`` times.
    """
    cluster.connect()
    _check_room(task.training)

    with tempfile.TemporaryDirectory(prefix="counterpoise-train-") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\.")  # Ray Data's defaults set what it deprecates
        try:
            _trainer(task, on_epoch, folder).fit()
        except ray.train.TrainingFailedError as error:
            for failure in getattr(error, "worker_failures", {}).values():
                if isinstance(failure, CounterpoiseError):
                    raise failure from error
            raise


def _trainer(task: Fit, on_epoch: OnEpoch | None, folder: str) -> TorchTrainer:
    training, each = task.training, task.training.resources
    return TorchTrainer(
        _work,
        train_loop_config={"task": task, "on_epoch": on_epoch},
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=each.num_gpus > 0,
            resources_per_worker={"CPU": each.num_cpus, "GPU": each.num_gpus},
        ),
        run_config=RunConfig(  # type: ignore[arg-type]  # the trainer's annotation still names v1's
            name=f"{task.digest}-{uuid.uuid4().hex[:8]}",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=training.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _work(given: dict[str, Any]) -> None:
    task, context = given["task"], ray.train.get_context()
    torch.set_num_threads(max(1, int(task.training.resources.num_cpus)))
    fit(task, Worker(context.get_world_rank(), context.get_world_size(), get_device()), given["on_epoch"])


def _check_room(training: Training) -> None:
    """Raise ConfigError unless the cluster has the workers' resources: Ray Train would wait for ever."""
    room = ray.cluster_resources()
    for resource, each in (("CPU", training.resources.num_cpus), ("GPU", training.resources.num_gpus)):
        if training.num_workers * each > room.get(resource, 0):
            raise ConfigError(
                f"the cluster is too small for the workers of a fit: too few {resource}s",
                where="training.num_workers",
                found=f"{training.num_workers} workers with {each:g} {resource} each",
                allowed=f"{room.get(resource, 0):g} {resource} in all",
                remedy="lower training.num_workers or training.resources, or add machines",
            )
