"""Stages in order, each stored under the digest of all that led to it, and reused from there.

A study that varies the last stage therefore never repeats the first, and methods that begin alike share their
beginning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from counterpoise import config
from counterpoise.errors import ConfigError, DataError, PlanError
from counterpoise.store import Store, open_store, read
from counterpoise.table import Names, digest
from counterpoise.training import loop
from counterpoise.training.models import Classifier, build_model, weights_name
from counterpoise.training.objectives import OBJECTIVES
from counterpoise.training.pixels import Pixels
from counterpoise.training.workers import Worker
from counterpoise.view import View

FORMAT = 1  # of stored stages and of the training behind them: raise it when the same config trains differently

# What of `training` decides weights. The number of workers does not (beyond the order of summation).
_DECISIVE = {"backbone", "pretrained", "image_size", "batch_size", "augmentation", "select_by"}


@dataclass(frozen=True)
class Fitted:
    """A stage's result in the store.

    Attributes:
        name: The stage's name.
        digest: Its address.
        key: Key of the weights (safetensors) in the store.
        epoch: The epoch whose weights these are, from 1.
        history: For each epoch its loss and its metrics on the validation images.
        seconds: What it took to train, whenever that was.
        reused: Whether it was in the store already.
    """

    name: str
    digest: str
    key: str
    epoch: int
    history: list[loop.Row]
    seconds: float
    reused: bool


def run(
    experiment: config.Experiment,
    views: Mapping[str, View],
    validation: View,
    on_epoch: loop.OnEpoch | None = None,
) -> list[Fitted]:
    """Fits the experiment's stages in order; what the store holds is not fitted again.

    With ``training.num_workers`` = 1 a fit runs in this process, otherwise in as many Ray Train workers. A fit that was
    killed goes on after its last whole epoch.

    Args:
        experiment: Its stages, training section, seed and store count.
        views: The training images: ``real``, and one view for each plan.
        validation: Real images that choose each stage's epoch.
        on_epoch: Called after every epoch, where the fit runs (so it must be picklable for several workers).

    Raises:
        ConfigError: Training diverged, or the section asks for what the machine or the backbone cannot do.
        DataError: There are no validation images, or group labels are missing where they are needed.
        PlanError: A stage has no images to train on.
    """
    return [_fitted(task, on_epoch) for task in tasks(experiment, views, validation)]


def digests(experiment: config.Experiment, views: Mapping[str, View], validation: View) -> list[str]:
    """The addresses of what :func:`run` would return, without fitting anything."""
    return [task.digest for task in tasks(experiment, views, validation)]


def predict(experiment: config.Experiment, fitted: Fitted, view: View) -> Float[np.ndarray, "n classes"]:
    """Class probabilities of the view's images, in its order."""
    worker = Worker()
    model = load(experiment, fitted, view.names).to(worker.device)
    return loop.predict(model, Pixels([view], experiment.training.image_size), worker)


def load(experiment: config.Experiment, fitted: Fitted, names: Names) -> Classifier:
    """The fitted classifier, on the CPU and in evaluation mode; takes uint8 images (n, 3, height, width)."""
    fresh = experiment.training.model_copy(update={"pretrained": False})
    model = build_model(fresh, len(names.classes), seed=0)
    model.load_state_dict(loop.load_weights(open_store(experiment.store), fitted.key))
    return model.eval()


def tasks(experiment: config.Experiment, views: Mapping[str, View], validation: View) -> list[loop.Fit]:
    """The fits that :func:`run` stands for, each with its address. Raises what it raises, before anything is fitted."""
    store, tasks = open_store(experiment.store), dict[str, loop.Fit]()
    for stage in experiment.stages:
        images = [views[name] for name in stage.data if len(views[name])]
        _check(experiment, stage, images, validation)
        start = stage.start or next(reversed(tasks), "scratch")
        tasks[stage.name] = _task(experiment, stage, images, validation, tasks.get(start), store)
    return list(tasks.values())


def _task(
    experiment: config.Experiment,
    stage: config.Stage,
    images: list[View],
    validation: View,
    parent: loop.Fit | None,
    store: Store,
) -> loop.Fit:
    training = experiment.training
    epochs, optimizer = stage.epochs or training.epochs, stage.optimizer or training.optimizer
    address = {
        "format": FORMAT,
        "data": [view.digest for view in images],
        "validation": validation.digest,
        "start": parent.digest if parent else weights_name(training),
        "stage": stage.model_dump(mode="json", exclude={"name", "data", "start", "epochs", "optimizer"}),
        "epochs": epochs,
        "optimizer": optimizer.model_dump(mode="json"),
        "training": training.model_dump(mode="json", include=_DECISIVE),
        "seed": experiment.seed,
    }
    return loop.Fit(
        stage=stage,
        training=training,
        epochs=epochs,
        optimizer=optimizer,
        views=images,
        validation=validation,
        seed=experiment.seed,
        start=parent.weights_key if parent else None,
        store=store,
        digest=digest(address),
        about={"address": address, "versions": {"torch": torch.__version__}},
    )


def _fitted(task: loop.Fit, on_epoch: loop.OnEpoch | None) -> Fitted:
    reused = task.store.exists(task.record_key)
    if not reused and task.training.num_workers == 1:
        loop.fit(task, Worker(), on_epoch)
    elif not reused:
        from counterpoise.training.distributed import fit_with_ray  # Ray Train takes seconds to import

        fit_with_ray(task, on_epoch)
    record: dict[str, Any] = json.loads(read(task.store, task.record_key))
    return Fitted(
        name=task.stage.name,
        digest=task.digest,
        key=task.weights_key,
        epoch=record["epoch"],
        history=record["history"],
        seconds=record["seconds"],
        reused=reused,
    )


def _check(experiment: config.Experiment, stage: config.Stage, images: list[View], validation: View) -> None:
    where = f"stages.{[other.name for other in experiment.stages].index(stage.name)}"
    if not images:
        raise PlanError(
            f"stage {stage.name!r} has no images to train on",
            where=f"{where}.data",
            found=", ".join(f"{name}: 0 images" for name in stage.data),
            remedy="the plan wants none (is the dataset balanced already?): use another strategy, or name other data",
        )
    if not validation.counts.sum():
        raise DataError(
            "there are no validation images of known cells",
            where="data",
            found=f"{len(validation)} validation images",
            remedy="give the dataset a validation split (data.splits), with groups if it has groups",
        )
    training = experiment.training
    if training.batch_size < training.num_workers:
        remedy = "every worker needs at least one image of each batch"
        raise ConfigError(
            "the batch is smaller than the number of workers",
            where="training.batch_size",
            found=f"{training.batch_size} for {training.num_workers} workers",
            remedy=remedy,
        )
    unknown = sum(int((view.groups < 0).sum()) for view in images) if validation.names.groups else 0
    needs_groups = OBJECTIVES[stage.objective.name].needs_groups or stage.sampling == "group_balanced"
    if unknown and needs_groups:
        raise DataError(
            f"stage {stage.name!r} needs the group of every training image",
            where=where,
            found=f"{unknown} images of unknown group",
            remedy="label their group, leave them out, or use objective erm with uniform sampling",
        )
