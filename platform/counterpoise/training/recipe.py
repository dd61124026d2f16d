"""Recipe of a stage: its training settings with the length and the initial weights worked out. Needs no torch.

Addresses of results follow from it, so that stored results are read without what a fit needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from counterpoise import config
from counterpoise.storage.view import ImageView

Row = dict[str, Any]  # an epoch's number, loss and metrics on the validation images


@dataclass
class StageRecipe:
    """Training settings of a stage, apart from its model.

    Attributes:
        stage: Mixture, objective, mix and batch-norm policy.
        training: Batch size and precision.
        optimizer: Rate and schedule.
        transforms: Augmentation of each image.
        epochs: Total number, which is the schedule's length.
    """

    stage: config.Stage
    training: config.Training
    optimizer: config.Optimizer
    transforms: list[config.Transform]
    epochs: int


def recipe_of(stage: config.Stage, training: config.Training, views: Sequence[ImageView]) -> StageRecipe:
    """Return the recipe of a stage on the images of these views."""
    return StageRecipe(
        stage=stage,
        training=training,
        optimizer=stage.optimizer or training.optimizer,
        transforms=training.augmentation if stage.augmentation is None else stage.augmentation,
        epochs=epochs_of(stage, training, views),
    )


def epoch_size(stage: config.Stage, views: Sequence[ImageView]) -> int:
    """Return the number of images that an epoch shows: all, or those of the stage's subsample."""
    if stage.mixture.subsample is None:
        return sum(map(len, views))
    counts = np.sum([view.counts for view in views], axis=0)
    sizes = counts.sum(1) if stage.mixture.subsample == "class" else counts
    present = sizes[sizes > 0]
    return int(present.min() * len(present)) if len(present) else 0


def epochs_of(stage: config.Stage, training: config.Training, views: Sequence[ImageView]) -> int:
    """Return the number of epochs of a stage: from its own ``epochs`` or ``steps``, or the training section's.

    Steps are rounded to whole epochs, at least one, because the validation images select an epoch.
    """
    section = stage if stage.epochs or stage.steps else training
    if section.epochs is not None:
        return section.epochs
    batches = -(-epoch_size(stage, views) // training.batch_size)
    return max(round((section.steps or 0) / max(batches, 1)), 1)
