"""The one training loop, run by one process on its own or by each of several Ray Train workers.

Everything random is a function of (seed, epoch), and an epoch ends with a checkpoint of all that the next one needs. A
fit that was killed therefore goes on after its last whole epoch and ends with the very weights it would have had
(the same bytes, on a CPU with the same number of workers and threads).
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from counterpoise import config
from counterpoise.errors import ConfigError
from counterpoise.store import Store, read
from counterpoise.table import Names, cell_counts
from counterpoise.training.models import Classifier, build_model
from counterpoise.training.objectives import make_objective
from counterpoise.training.pixels import Pixels
from counterpoise.training.sampling import augment, batches, epoch_augmentation, epoch_order, stage_groups
from counterpoise.training.workers import Worker
from counterpoise.view import View

Row = dict[str, Any]  # what an epoch was: epoch, loss and the metrics on the validation images
OnEpoch = Callable[[str, Row], None]  # (stage name, row); called where the fit runs, in worker 0

_INFERENCE_BATCH = 512


@dataclass(frozen=True)
class Fit:
    """All that a worker needs to fit a stage. Can be pickled.

    Attributes:
        stage: What makes this stage this stage.
        training: What all stages share.
        epochs: How often every image is shown.
        optimizer: The stage's, or else the training section's.
        views: The training images; more than one are concatenated.
        validation: The images that choose the epoch.
        seed: Of fresh weights, order and augmentation.
        start: Key of the weights to start from; None for fresh ones.
        store: Where the result goes.
        digest: Its address in the store.
        about: What the stage's record says besides, such as what its digest covers.
    """

    stage: config.Stage
    training: config.Training
    epochs: int
    optimizer: config.Optimizer
    views: list[View]
    validation: View
    seed: int
    start: str | None
    store: Store
    digest: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def weights_key(self) -> str:
        return f"stages/{self.digest}/weights.safetensors"

    @property
    def checkpoint_key(self) -> str:
        return f"stages/{self.digest}/checkpoint"

    @property
    def record_key(self) -> str:
        return f"stages/{self.digest}/stage.json"


@dataclass
class _State:
    """A fit between two epochs."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    objective: nn.Module
    epoch: int = 0
    best_epoch: int = 0
    best_score: tuple[float, ...] = ()
    best_model: dict[str, Tensor] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    seconds: float = 0.0


def fit(task: Fit, worker: Worker, on_epoch: OnEpoch | None = None) -> None:
    """Trains, and leaves the best epoch's weights and then the stage's record in the store.

    Every worker calls this with the same task. Goes on from the checkpoint in the store, if there is one.

    Raises:
        ConfigError: The loss is no longer finite.
        DataError: An image cannot be read.
    """
    if task.store.exists(task.record_key):
        return
    images = _Images(task, worker.device)
    validation = Pixels([task.validation], task.training.image_size)
    state = _initial(task, images.group_count, worker.device)
    _restore(task, state)
    with _reproducible():
        while state.epoch < task.epochs:
            started = time.monotonic()
            loss = _train_epoch(task, images, state, worker)
            predicted = predict(state.model, validation, worker).argmax(1)
            state.epoch += 1
            row = {"epoch": state.epoch, "loss": loss} | validation_metrics(task.validation, predicted)
            _remember(task, state, row)
            state.seconds += time.monotonic() - started
            if worker.rank == 0:
                _checkpoint(task, state)
                if on_epoch:
                    on_epoch(task.stage.name, row)
    if worker.rank == 0:
        _finish(task, state)


class _Images:
    """The training images of a stage: pixels, and labels and groups on the worker's device."""

    def __init__(self, task: Fit, device: torch.device) -> None:
        self.pixels = Pixels(task.views, task.training.image_size)
        labels, groups, synthetic = (
            np.concatenate([getattr(view, name) for view in task.views]) for name in ("labels", "groups", "synthetic")
        )
        self.group_of = stage_groups(labels, groups, synthetic, task.stage.groups)
        self.group_count = int(self.group_of.max()) + 1
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(device)
        self.groups = torch.from_numpy(self.group_of).to(device)


def _initial(task: Fit, groups: int, device: torch.device) -> _State:
    classes = len(task.validation.names.classes)
    model = build_model(task.training, classes, task.seed)
    if task.start:
        model.load_state_dict(load_weights(task.store, task.start))
    model = model.to(device)
    objective = make_objective(task.stage.objective, groups).to(device)
    return _State(model, _make_optimizer(task.optimizer, model), objective)


def _make_optimizer(settings: config.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    parameters, lr, decay = model.parameters(), settings.lr, settings.weight_decay
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=settings.momentum)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(parameters, lr=lr, weight_decay=decay)


def _train_epoch(task: Fit, images: _Images, state: _State, worker: Worker) -> float:
    """One epoch. Returns the mean loss over the images shown."""
    training, seed, epoch = task.training, task.seed, state.epoch
    order = epoch_order(images.group_of, task.stage.sampling, seed, epoch)
    how = epoch_augmentation(training.augmentation, len(order), training.image_size, seed, epoch)
    state.model.train(task.stage.batch_norm == "train")
    total, shown = torch.zeros((), device=worker.device), 0
    steps = batches(order, training.batch_size)
    with _seeded(worker, seed, epoch):
        for step, batch in enumerate(steps):
            own = worker.share(len(batch))
            pixels = worker.put(images.pixels[batch[own]])
            if how is not None:
                pixels = augment(pixels, how[shown + own.start : shown + own.stop])
            losses = nn.functional.cross_entropy(
                state.model(pixels.permute(0, 3, 1, 2)), images.labels[batch[own]], reduction="none"
            )
            all_losses = worker.gather(losses.detach(), own, len(batch))
            weights = state.objective(all_losses, images.groups[batch])
            _set_lr(task, state, (epoch + step / len(steps)) / task.epochs)
            state.optimizer.zero_grad()
            (weights[own] * losses).sum().backward()
            worker.sum_gradients(state.model)
            state.optimizer.step()
            total += all_losses.sum()
            shown += len(batch)
    worker.average_buffers(state.model.backbone)
    return float(total) / shown


def _set_lr(task: Fit, state: _State, progress: float) -> None:
    factor = (1 + math.cos(math.pi * progress)) / 2 if task.optimizer.schedule == "cosine" else 1.0
    for group in state.optimizer.param_groups:
        group["lr"] = task.optimizer.lr * factor


def predict(model: Classifier, pixels: Pixels, worker: Worker) -> Float[np.ndarray, "n classes"]:
    """Probabilities of all images; each worker computes its slice and gets the whole."""
    model.eval()
    own = worker.share(len(pixels))
    parts = []
    with torch.inference_mode():
        for start in range(own.start, max(own.stop, own.start + 1), _INFERENCE_BATCH):
            images = worker.put(pixels[np.arange(start, min(start + _INFERENCE_BATCH, own.stop))])
            parts.append(model(images.permute(0, 3, 1, 2)).softmax(1))
        probabilities = worker.gather(torch.cat(parts), own, len(pixels))
    return probabilities.cpu().numpy()


def validation_metrics(view: View, predicted: Int[np.ndarray, " n"]) -> Row:
    """Accuracy, and over the cells that the view has images of: the mean (balanced) and least accuracy."""
    names: Names = view.names
    correct = predicted == view.labels
    counts = cell_counts(view.labels, view.groups, names)
    right = cell_counts(view.labels[correct], view.groups[correct], names)
    cells = right[counts > 0] / counts[counts > 0]
    return {
        "accuracy": float(correct.mean()),
        "balanced_accuracy": float(cells.mean()),
        "worst_group_accuracy": float(cells.min()),
    }


def score(row: Row, select_by: str) -> tuple[float, ...]:
    """What an epoch is judged by; the first epoch with the greatest score wins.

    The worst group of a small validation set moves in large steps, so that ties are common: balanced accuracy breaks
    them. (FFR keeps the first epoch with the best worst-group accuracy.)
    """
    keys = {
        "worst_group_accuracy": ("worst_group_accuracy", "balanced_accuracy"),
        "balanced_accuracy": ("balanced_accuracy", "worst_group_accuracy"),
        "accuracy": ("accuracy",),
        "last": ("epoch",),
    }[select_by]
    return tuple(float(row[key]) for key in keys)


def _remember(task: Fit, state: _State, row: Row) -> None:
    if not math.isfinite(row["loss"]):
        raise ConfigError(
            f"training diverged in epoch {row['epoch']}",
            where=f"stage {task.stage.name!r}",
            found=f"loss {row['loss']}",
            remedy="lower the learning rate (training.optimizer.lr, or the stage's optimizer.lr)",
        )
    state.history.append(row)
    if not state.best_epoch or score(row, task.training.select_by) > state.best_score:
        state.best_epoch, state.best_score = row["epoch"], score(row, task.training.select_by)
        state.best_model = {name: value.detach().cpu().clone() for name, value in state.model.state_dict().items()}


_MODULES, _VALUES = ("model", "optimizer", "objective"), ("epoch", "best_epoch", "best_model", "history", "seconds")


def _checkpoint(task: Fit, state: _State) -> None:
    saved = {name: getattr(state, name).state_dict() for name in _MODULES}
    saved |= {name: getattr(state, name) for name in _VALUES} | {"best_score": list(state.best_score)}
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    task.store.replace(task.checkpoint_key, buffer.getvalue())


def _restore(task: Fit, state: _State) -> None:
    """Takes up the checkpoint. All workers of a group read the same one: the group starts when the last one is gone."""
    if not task.store.exists(task.checkpoint_key):
        return
    device = next(state.model.parameters()).device
    saved = torch.load(io.BytesIO(read(task.store, task.checkpoint_key)), map_location=device, weights_only=True)
    for name in _MODULES:
        getattr(state, name).load_state_dict(saved[name])
    for name in _VALUES:
        setattr(state, name, saved[name])
    state.best_score = tuple(saved["best_score"])


def _finish(task: Fit, state: _State) -> None:
    """The record goes last: where it is, the weights are."""
    weights = {name: value.cpu().contiguous() for name, value in state.best_model.items()}
    task.store.create(task.weights_key, save_safetensors(weights))
    record = {
        "name": task.stage.name,
        "epoch": state.best_epoch,
        "history": state.history,
        "seconds": round(state.seconds, 3),
        **task.about,
    }
    task.store.create(task.record_key, json.dumps(record, indent=1).encode())
    task.store.delete(task.checkpoint_key)


def load_weights(store: Store, key: str) -> dict[str, Tensor]:
    """The state dict of a :class:`~counterpoise.training.models.Classifier` at ``key``."""
    return load_safetensors(read(store, key))


@contextmanager
def _seeded(worker: Worker, seed: int, epoch: int) -> Iterator[None]:
    """Seeds torch's global generators, from which dropout draws, and gives them back as they were."""
    with torch.random.fork_rng([worker.device] if worker.device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch, worker.rank]).generate_state(1)[0]))
        yield


@contextmanager
def _reproducible() -> Iterator[None]:
    """cuDNN's deterministic algorithms; on a CPU nothing is needed."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield
