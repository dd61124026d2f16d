"""The gradients that a selective mask comes from: a node in the graph of stages, done once for every ``top_k``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from counterpoise import config
from counterpoise.storage.store import Store, read
from counterpoise.storage.view import ImageView
from counterpoise.training.engine import loop
from counterpoise.training.engine.process_group import Worker
from counterpoise.training.loading.augmentation import Augmenter
from counterpoise.training.loading.stage_dataset import StageImages
from counterpoise.training.models import restored_model
from counterpoise.training.parameters.gradient_mask import differences, mean_gradients


@dataclass(frozen=True)
class Gradients:
    """How much the gradients of each parameter tensor differ between views (AIM-Fair, section 3.3).

    Attributes:
        recipe: Of the stage that the mask is for: its batches, transforms and batch-norm policy are used here too.
        views: By name: those of ``trainable.similar`` and ``trainable.different``.
        classes: Number of logits.
        seed: Of order and augmentation.
        start: Key of the weights at which gradients are taken; None for fresh ones.
        before: The fit whose weights these are, if one made them.
        store: Where the result goes.
        digest: Its address in the store.
    """

    recipe: loop.StageRecipe
    views: dict[str, ImageView]
    classes: int
    seed: int
    start: str | None
    before: Any  # Fit | None
    store: Store
    digest: str

    @property
    def record_key(self) -> str:
        return f"masks/{self.digest}.json"

    num_workers = 1

    @property
    def training(self) -> config.Training:
        return self.recipe.training

    @property
    def resources(self) -> config.ActorResources:
        return self.training.resources

    @property
    def note(self) -> str:
        """What a progress bar says of it."""
        return f"gradients for stage {self.recipe.stage.name}, seed {self.seed}"

    @property
    def parents(self) -> tuple[Any, ...]:
        return () if self.before is None else (self.before,)

    def done(self) -> bool:
        return self.store.exists(self.record_key)

    def read(self) -> dict[str, dict[str, float]]:
        """``similar`` and ``different``: parameter name → how far the two gradients are apart."""
        return json.loads(read(self.store, self.record_key))

    def run(self) -> None:
        """Takes the gradients and stores their differences, unless they are there."""
        if self.done():
            return
        worker, trainable = Worker(), self.recipe.stage.trainable
        with loop.reproducible():
            gradients = {name: self._gradients(view, worker) for name, view in self.views.items()}
        found = {
            key: differences(gradients[pair[0]], gradients[pair[1]], trainable.distance)
            for key, pair in (("similar", trainable.similar), ("different", trainable.different))
        }
        self.store.create(self.record_key, json.dumps(found, indent=1).encode())

    def _gradients(self, view: ImageView, worker: Worker) -> dict[str, Tensor]:
        model = restored_model(self.training, self.classes, self.seed, self.store, self.start)
        return mean_gradients(model.to(worker.device), self.recipe.stage, self._batches(view, worker), self.seed)

    def _batches(self, view: ImageView, worker: Worker) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass through a view's images, shuffled and transformed as in the stage's first epoch."""
        plain = config.Stage(name="pass", data=["real"])
        images = StageImages(plain, [view], self.training.image_size, self.seed)
        augmenter = Augmenter(self.recipe.transforms, self.training.image_size)
        drawn, start = augmenter.draw(len(images), self.seed, 0), 0
        for batch in images.batches(self.training.batch_size, 0):
            pixels = worker.put(images.read(batch))
            pixels = augmenter.apply(pixels, drawn, slice(start, start + len(batch)))
            labels = torch.from_numpy(images.labels[np.asarray(batch)]).to(worker.device)
            yield pixels.permute(0, 3, 1, 2), labels
            start += len(batch)
