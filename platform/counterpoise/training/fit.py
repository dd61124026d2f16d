"""A stage fitted: from its start, epoch by epoch with a checkpoint after each, to its record in the store.

A fit that was killed goes on after its last whole epoch and ends with the very weights it would have had (the same
bytes, on a CPU with the same number of workers and threads).
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from counterpoise import config
from counterpoise.errors import ConfigError
from counterpoise.store import Store, read
from counterpoise.training import loop
from counterpoise.training.gradients import Gradients
from counterpoise.training.images import StageImages
from counterpoise.training.loop import Row, Trainer
from counterpoise.training.models import Classifier, fresh_head, restored_model
from counterpoise.training.pixels import Pixels
from counterpoise.training.selective import ranked_mask
from counterpoise.training.trainable import movable, plain_state, prepare
from counterpoise.training.workers import Worker
from counterpoise.view import View

OnEpoch = Callable[[str, Row], None]  # (stage name, row); called where the fit runs, in worker 0


@dataclass(frozen=True)
class Fit:
    """All that a worker needs to fit a stage: a :class:`counterpoise.schedule.Node`. Can be pickled.

    Attributes:
        recipe: How it trains.
        views: The training images; more than one are concatenated.
        validation: The images that choose the epoch.
        seed: Of fresh weights, order and augmentation.
        start: Key of the weights to start from; None for fresh ones.
        before: The fit whose weights these are, if one made them.
        reference: The fit whose mistakes this one looks at.
        gradients: What the selective mask comes from.
        store: Where the result goes.
        digest: Its address in the store.
        about: What the stage's record says besides, such as what its digest covers.
    """

    recipe: loop.Recipe
    views: list[View]
    validation: View
    seed: int
    start: str | None
    before: Fit | None
    reference: Fit | None
    gradients: Gradients | None
    store: Store
    digest: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> config.Stage:
        return self.recipe.stage

    @property
    def training(self) -> config.Training:
        return self.recipe.training

    @property
    def select_by(self) -> config.SelectBy:
        return self.stage.select_by or self.training.select_by

    @property
    def sees_groups(self) -> bool:
        """Whether training or selection looks at a group label."""
        return self.stage.group_aware or self.select_by in config.GROUP_METRICS

    @property
    def weights_key(self) -> str:
        return f"stages/{self.digest}/weights.safetensors"

    @property
    def checkpoint_key(self) -> str:
        return f"stages/{self.digest}/checkpoint"

    @property
    def record_key(self) -> str:
        return f"stages/{self.digest}/stage.json"

    @property
    def parents(self) -> tuple[Fit | Gradients, ...]:
        """What must be done before this."""
        return tuple(node for node in (self.before, self.reference, self.gradients) if node is not None)

    @property
    def num_workers(self) -> int:
        return self.training.num_workers

    @property
    def resources(self) -> config.Workers:
        return self.training.resources

    @property
    def note(self) -> str:
        """What a progress bar says of it."""
        return f"stage {self.stage.name}, seed {self.seed}"

    def done(self) -> bool:
        return self.store.exists(self.record_key)

    def run(self, on_epoch: OnEpoch | None = None) -> None:
        """Fits the stage, unless the store has it: here, or in as many Ray Train workers as the section says."""
        if self.done():
            return
        if self.stage.dfr:
            from counterpoise.training.posthoc import refit  # scikit-learn takes a second to import

            refit(self, Worker())
        elif self.training.num_workers == 1:
            fit(self, Worker(), on_epoch)
        else:
            from counterpoise.training.distributed import fit_with_ray  # Ray Train takes seconds to import

            fit_with_ray(self, on_epoch)

    def finish(
        self,
        weights: dict[str, Tensor],
        epoch: int,
        history: list[Row],
        seconds: float,
        moved: dict[str, bool] | None = None,
    ) -> None:
        """Puts weights and then the record into the store: where the record is, the weights are."""
        self.store.create(
            self.weights_key, save_safetensors({name: value.contiguous() for name, value in weights.items()})
        )
        record = {"name": self.stage.name, "epoch": epoch, "history": history, "seconds": round(seconds, 3)}
        record |= {} if moved is None else {"moved": moved}
        self.store.create(self.record_key, json.dumps(record | self.about, indent=1).encode())
        self.store.delete(self.checkpoint_key)


@dataclass
class _Progress:
    """What a fit has come to between two epochs, beside its trainer."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: list[float] = field(default_factory=list)
    best_model: dict[str, Tensor] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    seconds: float = 0.0


def fit(task: Fit, worker: Worker, on_epoch: OnEpoch | None = None) -> None:
    """Trains, and leaves the best epoch's weights and then the stage's record in the store.

    Every worker calls this with the same task. Goes on from the checkpoint in the store, if there is one.

    Raises:
        ConfigError: The loss is no longer finite, or the stage does not fit the backbone.
        DataError: An image cannot be read.
    """
    if task.done():
        return
    validation = Pixels([task.validation], task.training.image_size)
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
                _checkpoint(task, trainer, progress)
                if on_epoch:
                    on_epoch(task.stage.name, row)
    if worker.rank == 0:
        moved = movable(trainer.model, task.stage)
        task.finish(progress.best_model, progress.best_epoch, progress.history, progress.seconds, moved)


def make_trainer(task: Fit, worker: Worker) -> Trainer:
    """The trainer of a stage before its first epoch."""
    stage, training = task.stage, task.training
    model = started_model(task)
    if stage.head == "fresh":
        fresh_head(model, task.seed)
    prepare(model, stage, task.seed, _mask(task))
    images = StageImages(stage, task.views, training.image_size, task.seed, _reference(task, worker))
    return Trainer(task.recipe, model.to(worker.device), images, worker)


def started_model(task: Fit) -> Classifier:
    """A classifier with the weights that the stage starts from, on the CPU."""
    return restored_model(task.training, len(task.validation.names.classes), task.seed, task.store, task.start)


def _mask(task: Fit) -> list[str] | None:
    if task.gradients is None or task.stage.trainable.top_k is None:
        return None
    found = task.gradients.read()
    return ranked_mask(found["similar"], found["different"], task.stage.trainable.top_k)


def _reference(task: Fit, worker: Worker) -> np.ndarray | None:
    """Logits of the reference stage's classifier for the training images."""
    if task.reference is None:
        return None
    classes = len(task.validation.names.classes)
    model = restored_model(task.training, classes, task.seed, task.store, task.reference.weights_key)
    pixels = Pixels(task.views, task.training.image_size)
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
        progress.best_model = {name: value.clone() for name, value in plain_state(model).items()}


def _checkpoint(task: Fit, trainer: Trainer, progress: _Progress) -> None:
    buffer = io.BytesIO()
    torch.save({"trainer": trainer.state(), "progress": vars(progress)}, buffer)
    task.store.replace(task.checkpoint_key, buffer.getvalue())


def _restore(task: Fit, trainer: Trainer, progress: _Progress) -> None:
    """Takes up the checkpoint. All workers of a group read the same one: the group starts when the last one is gone."""
    if not task.store.exists(task.checkpoint_key):
        return
    device = trainer.worker.device
    saved = torch.load(io.BytesIO(read(task.store, task.checkpoint_key)), map_location=device, weights_only=True)
    trainer.load_state(saved["trainer"])
    vars(progress).update(saved["progress"])
    progress.best_model = {name: value.cpu() for name, value in progress.best_model.items()}
