"""Training epochs and predictions of one process, alone or as one of several workers.

Everything random is a function of (seed, epoch), and nothing depends on how many workers share a batch, beyond the
order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoise import config
from counterpoise.config.training import Cosine, Step
from counterpoise.core.rng import torch_seed
from counterpoise.evaluation.catalogue import selection_score
from counterpoise.evaluation.metrics import confusion_counts, selection_metrics
from counterpoise.storage.view import ImageView
from counterpoise.training.engine.process_group import Worker
from counterpoise.training.loading.augmentation import Augmenter, Drawn
from counterpoise.training.loading.mixing import Mixing, apply_mixing, epoch_mixing
from counterpoise.training.loading.pixel_cache import PixelCache
from counterpoise.training.loading.stage_dataset import StageImages
from counterpoise.training.models import Classifier
from counterpoise.training.objectives.losses import make_loss
from counterpoise.training.objectives.risks import make_risk
from counterpoise.training.parameters.trainable import set_mode
from counterpoise.training.recipe import Row, StageRecipe

_INFERENCE_BATCH = 512


class Trainer:
    """A model in training; epochs change its ``model``, ``optimizer``, ``loss`` and ``risk``.

    Args:
        recipe: Training settings.
        model: On the worker's device; parameters without ``requires_grad`` stay as they are.
        images: The training images.
        worker: This process among those that share the batches.
    """

    def __init__(self, recipe: StageRecipe, model: Classifier, images: StageImages, worker: Worker) -> None:
        self.recipe, self.model, self.images, self.worker = recipe, model, images, worker
        self.call = torch.compile(model) if recipe.training.compile else model
        self.loss = make_loss(recipe.stage.objective.loss, images.prior, recipe.training.head).to(worker.device)
        self.risk = make_risk(recipe.stage.objective.risk, images.group_sizes).to(worker.device)
        self.optimizer = _make_optimizer(recipe.optimizer, model)
        self.augmenter = Augmenter(recipe.transforms, recipe.training.image_size)
        self.labels = torch.from_numpy(images.labels).to(worker.device)
        self.groups = torch.from_numpy(images.groups).to(worker.device)
        self.reference = torch.from_numpy(images.reference).to(worker.device)

    def epoch(self, seed: int, epoch: int) -> float:
        """Train on every batch of an epoch (from 0); return the mean loss of the images shown."""
        batches = self.images.batches(self.recipe.training.batch_size, epoch)
        shown = sum(map(len, batches))
        drawn = self.augmenter.draw(shown, seed, epoch)
        mixings: list[Mixing | None] = [None] * len(batches)
        if self.recipe.stage.mix is not None:
            size = self.recipe.training.image_size
            mixings = [*epoch_mixing(self.recipe.stage.mix, batches, self.images.synthetic, size, seed, epoch)]
        total, start = torch.zeros((), device=self.worker.device), 0
        set_mode(self.model, self.recipe.stage)
        with _seeded(self.worker, seed, epoch):
            for step, (batch, mixing) in enumerate(zip(batches, mixings, strict=True)):
                self._set_lr((epoch + step / len(batches)) / self.recipe.epochs, epoch)
                losses = self._step(batch, mixing, drawn, start)
                total += losses.sum()
                start += len(batch)
        self.worker.average_buffers(self.model.backbone)
        return float(total) / shown

    def _step(self, batch: Int[np.ndarray, " n"], mixing: Mixing | None, drawn: Drawn, start: int) -> Tensor:
        """Take one step on a batch; return the losses of all its images."""
        own = self.worker.share(len(batch))
        # Mixing may pair an image with one of another worker's share, so every worker then prepares the whole batch.
        needed = own if mixing is None else slice(0, len(batch))
        pixels = self.worker.put(self.images.read(batch[needed]))
        pixels = self.augmenter.apply(pixels, drawn, slice(start + needed.start, start + needed.stop))
        images, labels = pixels.permute(0, 3, 1, 2), self.labels[batch[own]]
        if mixing is None:
            logits, features = self._forward(images)
            losses = self.loss(logits, labels, features)
        else:
            partners = mixing.partners[own]
            logits, features = self._forward(apply_mixing(images[own], images[partners], mixing))
            losses = mixing.lam * self.loss(logits, labels, features)
            self.loss.eval()  # a loss that remembers features (adaface) has seen these already
            losses = losses + (1 - mixing.lam) * self.loss(logits, self.labels[batch[partners]], features)
            self.loss.train()
        all_losses = self.worker.gather(losses.detach(), own, len(batch))
        weights = self.risk(all_losses, self.groups[batch], self.reference[batch])
        self.optimizer.zero_grad()
        (weights[own] * losses).sum().backward()
        self.worker.sum_gradients(self.model)
        self.optimizer.step()
        return all_losses

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        with autocast(self.recipe.training, self.worker.device):
            if self.loss.needs_features:
                return self.model.logits_and_features(images)
            return self.call(images), None

    def _set_lr(self, progress: float, epoch: int) -> None:
        settings, factor = self.recipe.optimizer, 1.0
        if isinstance(settings.schedule, Cosine):
            factor = (1 + math.cos(math.pi * progress)) / 2
        elif isinstance(settings.schedule, Step):
            factor = settings.schedule.decay ** sum(epoch >= milestone for milestone in settings.schedule.milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * factor

    def state(self) -> dict[str, Any]:
        """Return a checkpoint's state dicts: model, optimizer, loss and risk."""
        return {name: getattr(self, name).state_dict() for name in _STATEFUL}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load a checkpoint's state dicts."""
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])


_STATEFUL = ("model", "optimizer", "loss", "risk")


def _make_optimizer(settings: config.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer of the trainable parameters only, so that weight decay leaves frozen ones alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lr, decay = settings.lr, settings.weight_decay
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=settings.momentum)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(parameters, lr=lr, weight_decay=decay)


def autocast(training: config.Training, device: torch.device) -> torch.autocast:
    """Return a bfloat16 autocast context, enabled by ``training.precision``; ``auto`` enables it on a GPU."""
    half = training.precision == "bfloat16" or (training.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def infer(
    call: Callable[[Tensor], Tensor], pixels: PixelCache, training: config.Training, worker: Worker
) -> Float[Tensor, "n d"]:
    """Return ``call``'s result for each image, in float32; each worker computes its slice and gets the whole."""
    own = worker.share(len(pixels))
    parts = []
    with torch.inference_mode(), autocast(training, worker.device):
        for start in range(own.start, max(own.stop, own.start + 1), _INFERENCE_BATCH):
            images = worker.put(pixels[np.arange(start, min(start + _INFERENCE_BATCH, own.stop))])
            parts.append(call(images.permute(0, 3, 1, 2)).float())
        return worker.gather(torch.cat(parts), own, len(pixels))


def predict(
    model: Classifier, pixels: PixelCache, training: config.Training, worker: Worker
) -> Float[np.ndarray, "n classes"]:
    """Return probabilities of all images; put the model into evaluation mode."""
    return infer(model.eval(), pixels, training, worker).softmax(1).cpu().numpy()


def validation_metrics(view: ImageView, predicted: Int[np.ndarray, " n"], with_groups: bool = True) -> Row:
    """Return the metrics that can select an epoch: accuracies over all images, classes and cells.

    Args:
        view: The images.
        predicted: Their classes.
        with_groups: Use the view's groups; without them there are no values of cells.
    """
    groups = view.groups if with_groups else np.full(len(view), -1)
    return selection_metrics(confusion_counts(view.labels, groups, predicted, view.names), with_groups)


def score(row: Row, select_by: config.SelectBy) -> tuple[float, ...]:
    """Return an epoch's selection score; the first epoch with the greatest score is selected.

    The catalogue of metrics breaks ties. (FFR keeps the first epoch with the best worst-group accuracy.)
    """
    return (float(row["epoch"]),) if select_by == "last" else selection_score(row, select_by)


@contextmanager
def _seeded(worker: Worker, seed: int, epoch: int) -> Iterator[None]:
    """Seed torch's global generators, which dropout uses, and restore their state afterwards."""
    with torch.random.fork_rng([worker.device] if worker.device.type == "cuda" else []):
        torch.manual_seed(torch_seed(seed, epoch, worker.rank))
        yield


@contextmanager
def reproducible() -> Iterator[None]:
    """Use cuDNN's deterministic algorithms; a CPU needs nothing."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield
