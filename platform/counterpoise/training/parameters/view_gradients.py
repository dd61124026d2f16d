"""Gradients behind a selective mask: a node of the graph of stages, shared by all values of ``top_k``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from counterpoise import config
from counterpoise.config.trainable import Selective
from counterpoise.storage.records import create_record, read_record
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView
from counterpoise.training.recipe import StageRecipe

if TYPE_CHECKING:  # imported where gradients are computed: addresses are known without torch
    from torch import Tensor

    from counterpoise.training.engine.process_group import Worker


@dataclass(frozen=True)
class Gradients:
    """Differences between views' gradients of each parameter tensor (AIM-Fair, section 3.3).

    Attributes:
        recipe: Recipe of the masked stage; its batches, transforms and batch-norm policy apply to the gradients too.
        views: Views by name: those of ``trainable.similar`` and ``trainable.different``.
        classes: Number of logits.
        seed: Seed of order and augmentation.
        start: Key of the weights at which gradients are taken; None for fresh ones.
        before: The fit that produces these weights, if any.
        store: The store that receives the result.
        digest: Its address in the store.
    """

    recipe: StageRecipe
    views: dict[str, ImageView]
    classes: int
    seed: int
    start: str | None
    before: Any  # Fit | None
    store: Store
    digest: str

    @property
    def record_key(self) -> str:
        """Key of the result in the store."""
        return f"masks/{self.digest}.json"

    num_workers = 1

    @property
    def training(self) -> config.Training:
        """The training section of the config."""
        return self.recipe.training

    @property
    def resources(self) -> config.ActorResources:
        """Resources of the process."""
        return self.training.resources

    def note(self) -> str:
        """Label for a progress bar."""
        return f"gradients for stage {self.recipe.stage.name}, seed {self.seed}"

    @property
    def parents(self) -> tuple[Any, ...]:
        """The node that must be done before this one, if any."""
        return () if self.before is None else (self.before,)

    def done(self) -> bool:
        """Return True if the store has the result."""
        return self.store.exists(self.record_key)

    def read(self) -> dict[str, dict[str, float]]:
        """Return ``similar`` and ``different``: parameter name → distance of the two gradients."""
        return read_record(self.store, self.record_key)

    def run(self) -> None:
        """Compute the gradients and store their differences, unless the store has them."""
        if self.done():
            return
        from counterpoise.training.engine import loop
        from counterpoise.training.engine.process_group import Worker
        from counterpoise.training.parameters.gradient_mask import differences

        worker, trainable = Worker(), self.recipe.stage.trainable
        assert isinstance(trainable, Selective), "only a selective stage compares gradients"
        with loop.reproducible():
            gradients = {name: self._gradients(view, worker) for name, view in self.views.items()}
        result = {
            key: differences(gradients[pair[0]], gradients[pair[1]], trainable.distance)
            for key, pair in (("similar", trainable.similar), ("different", trainable.different))
        }
        create_record(self.store, self.record_key, result)

    def _gradients(self, view: ImageView, worker: Worker) -> dict[str, Tensor]:
        from counterpoise.training.models import restored_model
        from counterpoise.training.parameters.gradient_mask import mean_gradients

        model = restored_model(self.training, self.classes, self.seed, self.store, self.start)
        return mean_gradients(model.to(worker.device), self.recipe.stage, self._batches(view, worker), self.seed)

    def _batches(self, view: ImageView, worker: Worker) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one pass through a view's images, shuffled and transformed as in the stage's first epoch."""
        import torch

        from counterpoise.training.loading.augmentation import Augmenter
        from counterpoise.training.loading.stage_dataset import StageImages

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
