"""Deep feature reweighting as a stage: the last layer is refitted on features, without epochs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from counterpoise.evaluation.catalogue import WORST_GROUP
from counterpoise.storage.view import ImageView
from counterpoise.training.engine import loop
from counterpoise.training.engine.dfr import fit_dfr
from counterpoise.training.engine.fit import initial_model
from counterpoise.training.engine.process_group import Worker
from counterpoise.training.loading.batches import stage_groups
from counterpoise.training.loading.pixel_cache import PixelCache
from counterpoise.training.models import Classifier, last_linear, with_normalized_head

if TYPE_CHECKING:
    from counterpoise.training.engine.task import Fit


def refit(task: Fit, worker: Worker) -> None:
    """Fit the stage's last layer by ``stage.dfr``, and store its weights and record.

    The layer is fitted on features of the stage's images. The images that the previous stage was trained on give the
    features' mean and deviation, as in Kirichenko et al. 2023.

    Raises:
        DataError: A group has too few images.
    """
    settings = task.stage.dfr
    assert settings is not None
    assert task.before is not None
    started = time.monotonic()
    model = initial_model(task).to(worker.device)
    if settings.normalize:
        with_normalized_head(model)
    labels, groups, synthetic = (
        np.concatenate([getattr(view, name) for view in task.views]) for name in ("labels", "groups", "synthetic")
    )
    head = fit_dfr(
        _features(task, model, task.views, worker),
        labels,
        stage_groups(labels, groups, synthetic, task.stage.groups),
        _features(task, model, task.before.views, worker),
        settings,
        len(task.validation.names.classes),
        task.seed,
    )
    _, last = last_linear(model.backbone)
    assert last.bias is not None
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(head.weight))
        last.bias.copy_(torch.from_numpy(head.bias))
    pixels = PixelCache([task.validation], task.training.image_size)
    predicted = loop.predict(model, pixels, task.training, worker).argmax(1)
    metrics = loop.validation_metrics(task.validation, predicted)
    row = {"epoch": 1, "strength": head.best_strength, f"tuning_{WORST_GROUP.name}": head.score} | metrics
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    task.finish(weights, 1, [row], task.cost(time.monotonic() - started, worker))


def _features(task: Fit, model: Classifier, views: list[ImageView], worker: Worker) -> Float[np.ndarray, "n d"]:
    def features(images: Tensor) -> Tensor:
        return model.logits_and_features(images)[1]

    model.eval()
    return loop.infer(features, PixelCache(views, task.training.image_size), task.training, worker).cpu().numpy()
