"""Fitting of one stage: epoch by epoch with a checkpoint after each, up to the record in the store.

A killed fit resumes after its last complete epoch and ends with the weights that it would have had without the
interruption (the same bytes, on a CPU with the same number of workers and threads).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from counterpoise.config.trainable import Selective
from counterpoise.errors import ConfigError
from counterpoise.training.engine import loop
from counterpoise.training.engine.checkpoint import load_checkpoint, save_checkpoint
from counterpoise.training.engine.loop import Trainer
from counterpoise.training.engine.process_group import Worker
from counterpoise.training.engine.task import Fit, OnEpoch
from counterpoise.training.loading.pixel_cache import PixelCache
from counterpoise.training.loading.stage_dataset import StageImages
from counterpoise.training.models import Classifier, fresh_head, restored_model
from counterpoise.training.parameters.gradient_mask import ranked_mask
from counterpoise.training.parameters.trainable import merged_state_dict, prepare, trainable_mask
from counterpoise.training.recipe import Row


@dataclass
class _Progress:
    """State of a fit between two epochs, in addition to its trainer's."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: list[float] = field(default_factory=list)
    best_model: dict[str, Tensor] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    seconds: float = 0.0


def fit(task: Fit, worker: Worker, on_epoch: OnEpoch | None = None) -> None:
    """Train a stage, then store the best epoch's weights and the stage's record.

    Every worker calls this with the same task. A checkpoint in the store is resumed; a damaged one is discarded.

    Raises:
        ConfigError: The loss is no longer finite, or the stage does not fit the backbone.
        DataError: An image cannot be read.
    """
    if task.done():
        return
    validation = PixelCache([task.validation], task.training.image_size)
    trainer, progress = make_trainer(task, worker), _Progress()
    _restore(task, trainer, progress)
    with loop.reproducible():
        while progress.epoch < task.recipe.epochs:
            started = time.monotonic()
            loss = trainer.epoch(task.seed, progress.epoch)
            predicted = loop.predict(trainer.model, validation, task.training, worker).argmax(1)
            progress.epoch += 1
            metrics = loop.validation_metrics(task.validation, predicted, task.sees_groups)
            row = {"epoch": progress.epoch, "loss": loss} | metrics
            _remember(task, trainer.model, progress, row)
            progress.seconds += time.monotonic() - started
            if worker.rank == 0:
                save_checkpoint(task, {"trainer": trainer.state(), "progress": vars(progress)})
                if on_epoch:
                    on_epoch(task.stage.name, row)
    if worker.rank == 0:
        moved = trainable_mask(trainer.model, task.stage)
        cost = task.cost(progress.seconds, worker)
        task.finish(progress.best_model, progress.best_epoch, progress.history, cost, moved)


def make_trainer(task: Fit, worker: Worker) -> Trainer:
    """Return the trainer of a stage before its first epoch."""
    stage, training = task.stage, task.training
    model = initial_model(task)
    if stage.head == "fresh":
        fresh_head(model, task.seed)
    prepare(model, stage, task.seed, _mask(task))
    images = StageImages(stage, task.views, training.image_size, task.seed, _reference(task, worker))
    return Trainer(task.recipe, model.to(worker.device), images, worker)


def initial_model(task: Fit) -> Classifier:
    """Return a classifier with the weights that the stage starts from, on the CPU."""
    return restored_model(task.training, len(task.validation.names.classes), task.seed, task.store, task.start)


def _mask(task: Fit) -> list[str] | None:
    if task.gradients is None or not isinstance(task.stage.trainable, Selective):
        return None
    stored = task.gradients.read()
    return ranked_mask(stored["similar"], stored["different"], task.stage.trainable.top_k)


def _reference(task: Fit, worker: Worker) -> np.ndarray | None:
    """Return logits of the reference stage's classifier for the training images."""
    if task.reference is None:
        return None
    classes = len(task.validation.names.classes)
    model = restored_model(task.training, classes, task.seed, task.store, task.reference.weights_key)
    pixels = PixelCache(task.views, task.training.image_size)
    return loop.infer(model.to(worker.device).eval(), pixels, task.training, worker).cpu().numpy()


def _remember(task: Fit, model: Classifier, progress: _Progress, row: Row) -> None:
    if not math.isfinite(row["loss"]):
        raise ConfigError(
            f"training diverged in epoch {row['epoch']}",
            where=f"stage {task.stage.name!r}",
            found=f"loss {row['loss']}",
            remedy="lower the learning rate (training.optimizer.lr, or the stage's optimizer.lr)",
        )
    progress.history.append(row)
    score = list(loop.score(row, task.select_by))
    if not progress.best_epoch or score > progress.best_score:
        progress.best_epoch, progress.best_score = row["epoch"], score
        progress.best_model = {name: value.clone() for name, value in merged_state_dict(model).items()}


def _restore(task: Fit, trainer: Trainer, progress: _Progress) -> None:
    """Load the checkpoint, if there is one."""
    saved = load_checkpoint(task, trainer.worker.device)
    if saved is None:
        return
    trainer.load_state(saved["trainer"])
    vars(progress).update(saved["progress"])
    progress.best_model = {name: value.cpu() for name, value in progress.best_model.items()}
