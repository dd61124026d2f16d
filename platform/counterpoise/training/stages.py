"""Training stages in order, each stored under the digest of its inputs and reused from the store.

A study that varies the last stage therefore never repeats the first, and methods share their common first stages.
Addresses and results are known without torch, which is imported where a stage is fitted or its classifier is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from counterpoise import config
from counterpoise.config.identity import identity
from counterpoise.config.trainable import Selective
from counterpoise.core.digest import digest
from counterpoise.core.model_source import hash_of_file
from counterpoise.errors import ModelError, PlanError
from counterpoise.execution import graph
from counterpoise.storage.records import read_record
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import Store
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView
from counterpoise.training.backbones import weights_name
from counterpoise.training.engine.task import Fit, OnEpoch
from counterpoise.training.parameters.view_gradients import Gradients
from counterpoise.training.recipe import Row, StageRecipe, recipe_of
from counterpoise.training.stage_checks import check_images, check_training

if TYPE_CHECKING:
    from counterpoise.training.models import Classifier

FORMAT = 3  # version of stored stages and their training: raise it when the same config trains differently


class StageFit(Fit):
    """A runnable fit: a node of the graph of stages."""

    def run(self, on_epoch: OnEpoch | None = None) -> None:
        """Fit the stage, unless the store has it: in this process, or in ``training.num_workers`` Ray Train workers."""
        if self.done():
            return
        from counterpoise.training.engine.process_group import Worker

        if self.stage.dfr:
            from counterpoise.training.engine.head_refit import refit  # scikit-learn takes a second to import

            refit(self, Worker())
        elif self.training.num_workers == 1:
            from counterpoise.training.engine.fit import fit

            fit(self, Worker(), on_epoch)
        else:
            from counterpoise.training.engine.distributed import fit_with_ray  # Ray Train takes seconds to import

            fit_with_ray(self, on_epoch)


@dataclass(frozen=True)
class Fitted:
    """A stage's result in the store.

    Attributes:
        name: The stage's name.
        digest: The stage's address.
        key: Key of the weights (safetensors) in the store.
        epoch: The selected epoch, from 1.
        history: Loss and validation metrics of each epoch.
        cost: Seconds, device, workers and images shown; see :meth:`counterpoise.training.engine.task.Fit.cost`.
        reused: True if the store already had it.
        moved: For each of the model's parameter tensors True if training moved it; None if it moved all.
    """

    name: str
    digest: str
    key: str
    epoch: int
    history: list[Row]
    cost: dict[str, Any]
    reused: bool
    moved: dict[str, bool] | None = None


def run(
    experiment: config.Experiment,
    views: Mapping[str, ImageView],
    validation: ImageView,
    on_epoch: OnEpoch | None = None,
) -> list[Fitted]:
    """Fit the experiment's stages from this process, in order; stages in the store are not fitted again.

    With ``training.num_workers`` = 1 a fit runs in this process, otherwise in as many Ray Train workers. A killed fit
    resumes after its last complete epoch.

    Args:
        experiment: The experiment; its stages, training section, seed and store apply.
        views: The training images: ``real``, and one view for each plan.
        validation: Real images that select each stage's epoch.
        on_epoch: Called after every epoch in the process that fits (so it must be picklable for several workers).

    Raises:
        ConfigError: Training diverged, or the machine or the backbone cannot do what the section requires.
        DataError: There are no validation images, or required group labels are missing.
        PlanError: A stage has no images to train on.
    """
    goals = tasks(experiment, views, validation)
    pending = graph.needed(goals)
    for node in pending.values():
        node.run(on_epoch) if isinstance(node, StageFit) else node.run()
    return [fitted(goal, goal.digest not in pending) for goal in goals]


def with_gradients(fits: Sequence[StageFit]) -> list[StageFit | Gradients]:
    """Return fits, and the nodes that measure gradients for their masks: all that is stored of them."""
    return [*fits, *(fit.gradients for fit in fits if fit.gradients is not None)]


def fitted(task: Fit, reused: bool) -> Fitted:
    """Return the result of a fit that is done."""
    record = read_record(task.store, task.record_key)
    return Fitted(
        name=task.stage.name,
        digest=task.digest,
        key=task.weights_key,
        epoch=record["epoch"],
        history=record["history"],
        cost=record["cost"],
        reused=reused,
        moved=record.get("moved"),
    )


def digests(experiment: config.Experiment, views: Mapping[str, ImageView], validation: ImageView) -> list[str]:
    """Return the addresses of :func:`run`'s results, without fitting anything."""
    return [task.digest for task in tasks(experiment, views, validation)]


def predict(experiment: config.Experiment, fitted: Fitted, view: ImageView) -> Float[np.ndarray, "n classes"]:
    """Return class probabilities of the view's images, in its order."""
    from counterpoise.training.engine import loop
    from counterpoise.training.engine.process_group import Worker
    from counterpoise.training.loading.pixel_cache import PixelCache

    worker = Worker()
    model = load(experiment, fitted, view.names).to(worker.device)
    return loop.predict(model, PixelCache([view], experiment.training.image_size), experiment.training, worker)


def load(experiment: config.Experiment, fitted: Fitted, names: LabelSpace) -> Classifier:
    """Return the fitted classifier, on the CPU and in evaluation mode; it takes uint8 images (n, 3, height, width)."""
    from counterpoise.training.models import build_model, load_weights, with_normalized_head

    fresh = experiment.training.model_copy(update={"pretrained": False})
    model = build_model(fresh, len(names.classes), seed=0)
    stage = next(stage for stage in experiment.stages if stage.name == fitted.name)
    if stage.dfr and stage.dfr.normalize:
        with_normalized_head(model)
    model.load_state_dict(load_weights(open_store(experiment.store), fitted.key))
    return model.eval()


def tasks(experiment: config.Experiment, views: Mapping[str, ImageView], validation: ImageView) -> list[StageFit]:
    """Return the fits of :func:`run`, each with its address; raise its errors before anything is fitted."""
    store, tasks = open_store(experiment.store), dict[str, StageFit]()
    views = {**views, "validation": validation}
    for index, stage in enumerate(experiment.stages):
        images = [views[name] for name in stage.data if len(views[name])]
        check_images(experiment, stage, f"stages.{index}", images, validation)
        task = tasks[stage.name] = _task(experiment, stage, f"stages.{index}", images, views, tasks, store)
        if not task.done():
            check_training(experiment.training, stage, f"stages.{index}")
    return list(tasks.values())


def _task(
    experiment: config.Experiment,
    stage: config.Stage,
    where: str,
    images: list[ImageView],
    views: Mapping[str, ImageView],
    earlier: dict[str, StageFit],
    store: Store,
) -> StageFit:
    training, validation = experiment.training, views["validation"]
    recipe = recipe_of(stage, training, images)
    start, before, start_digest = _start(stage, where, training, earlier, store)
    reference = earlier[stage.reference] if stage.reference else None
    steps = {
        "epochs": recipe.epochs,
        "optimizer": identity(recipe.optimizer, "weights"),
        "select_by": stage.select_by or training.select_by,
    }
    shared = {
        "format": FORMAT,
        "start": start_digest,
        "augmentation": recipe.transforms,
        "training": identity(training, "weights"),
        "seed": experiment.seed,
    }
    gradients = _gradients(recipe, where, views, experiment.seed, start, before, store, shared)
    address = shared | {
        "data": [view.digest for view in images],
        "validation": validation.digest,
        "stage": identity(stage, "weights"),
        "reference": reference.digest if reference else None,
        "gradients": gradients.digest if gradients else None,
        "steps": None if stage.dfr else steps,
    }
    return StageFit(
        recipe=recipe,
        views=images,
        validation=validation,
        seed=experiment.seed,
        start=start,
        before=before,
        reference=reference,
        gradients=gradients,
        store=store,
        digest=digest(address),
        about={"address": address},
    )


def _start(
    stage: config.Stage, where: str, training: config.Training, earlier: dict[str, StageFit], store: Store
) -> tuple[str | None, StageFit | None, str | None]:
    """Return a stage's initial weights: their key in the store, the fit that produces them, and their address."""
    name = stage.start or next(reversed(earlier), "scratch")
    if name == "scratch":
        return None, None, weights_name(training)
    if name in earlier:
        return earlier[name].weights_key, earlier[name], earlier[name].digest
    path = Path(name).expanduser()
    try:
        address = hash_of_file(path)
        key = f"weights/{address}.safetensors"  # in the store, so that every worker can read it
        if not store.exists(key):
            store.create(key, path.read_bytes())
    except OSError as error:
        raise ModelError("these weights cannot be read", where=f"{where}.start", found=error) from error
    return key, None, address


def _gradients(
    recipe: StageRecipe,
    where: str,
    views: Mapping[str, ImageView],
    seed: int,
    start: str | None,
    before: StageFit | None,
    store: Store,
    shared: dict[str, Any],
) -> Gradients | None:
    trainable = recipe.stage.trainable
    if not isinstance(trainable, Selective):
        return None
    compared = {name: views[name] for name in (*trainable.similar, *trainable.different)}
    for name, view in compared.items():
        if not len(view):
            raise PlanError(
                f"stage {recipe.stage.name!r} compares gradients on {name!r}, which has no images",
                where=f"{where}.trainable",
                found="0 images",
                remedy="the plan asks for none, perhaps because the dataset is balanced already: use another strategy",
            )
    address = shared | {
        "pairs": [[views[name].digest for name in pair] for pair in (trainable.similar, trainable.different)],
        "distance": trainable.distance,
        "batch_norm": recipe.stage.batch_norm,
    }
    classes = len(views["validation"].names.classes)
    return Gradients(recipe, compared, classes, seed, start, before, store, digest(address))
