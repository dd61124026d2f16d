"""Equal-compute control: the baseline, trained on real images for as many gradient steps as the costliest method.

Synthetic images add gradient steps to an epoch. A method with synthetic images is therefore also compared with plain
training that shows as many images, all of them real. A gain over this control is not due to longer training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoise.config import Experiment, Optimizer, Stage
from counterpoise.config.training import Step
from counterpoise.storage.view import ImageView
from counterpoise.training.recipe import epoch_size, epochs_of
from counterpoise.workflow.suite import Suite

NAME = "control"


@dataclass(frozen=True)
class EqualComputeBaseline:
    """The equal-compute control.

    Attributes:
        experiments: One for each seed, of the method ``control``.
        of: The costliest method, which shows most images in training.
        shown: The number of images that it shows.
        base: The method that is trained longer.
        epochs: The epochs of all stages together.
    """

    experiments: list[Experiment]
    of: str
    shown: int
    base: str
    epochs: int

    def describe(self) -> dict[str, Any]:
        """Return what a report says of it: the costliest method, the base, its epochs, the images shown."""
        return {"method": self.of, "base": self.base, "epochs": self.epochs, "images_shown": self.shown}


def images_shown(experiment: Experiment, views: Mapping[str, ImageView]) -> int:
    """Return the images that training shows in all stages, repeats counted: gradient steps × batch size.

    Deep feature reweighting has no epochs, and shows none.

    Args:
        experiment: The method.
        views: All images that its stages train on: ``real``, ``validation`` and those of its plans.
    """
    return sum(
        epochs_of(stage, experiment.training, trained) * epoch_size(stage, trained)
        for stage in experiment.stages
        if stage.dfr is None
        for trained in [_trained(stage, views)]
    )


def _trained(stage: Stage, views: Mapping[str, ImageView]) -> list[ImageView]:
    return [views[name] for name in stage.data]


def control(suite: Suite, views: Mapping[str, Mapping[str, ImageView]]) -> EqualComputeBaseline | None:
    """Return the control of a suite.

    Args:
        suite: The methods.
        views: By method, all images that its stages train on: ``real``, ``validation`` and those of its plans.

    Returns:
        None if no method has plans, if there is nothing to train longer, or if the suite has a method of this name.
    """
    base = suite.baseline
    if NAME in suite.methods or base is None or not suite.planned:
        return None
    shown = {method: images_shown(experiment, views[method]) for method, experiment in suite.methods.items()}
    return equal_compute(suite.experiments, base, shown, views[base])


def equal_compute(
    experiments: Sequence[Experiment], base: str, shown: Mapping[str, int], views: Mapping[str, ImageView]
) -> EqualComputeBaseline | None:
    """Return ``base`` with its epochs scaled, rounded up, so that it shows as many images as the costliest method.

    Args:
        experiments: Experiments, including those of ``base``.
        base: A method that trains on real images alone.
        shown: The result of :func:`images_shown` for each method.
        views: The images that the stages of ``base`` train on.

    Returns:
        None if no method shows more images than ``base``.
    """
    costliest = max(shown, key=shown.__getitem__)
    if shown[costliest] <= shown[base]:
        return None
    longer = [_longer(e, shown[costliest], shown[base], views) for e in experiments if e.method == base]
    epochs = sum(stage.epochs or 0 for stage in longer[0].stages)
    return EqualComputeBaseline(longer, costliest, shown[costliest], base, epochs)


def _longer(experiment: Experiment, images: int, instead_of: int, views: Mapping[str, ImageView]) -> Experiment:
    training = experiment.training

    def scaled(epochs: int) -> int:
        return -(-epochs * images // instead_of)

    def optimizer(stage: Stage) -> Optimizer | None:
        """Scale the milestones of a step schedule, which are epochs too."""
        effective = stage.optimizer or training.optimizer
        if not isinstance(effective.schedule, Step):
            return stage.optimizer
        milestones = [scaled(epoch) for epoch in effective.schedule.milestones]
        schedule = effective.schedule.model_copy(update={"milestones": milestones})
        return effective.model_copy(update={"schedule": schedule})

    def length(stage: Stage) -> int:
        return scaled(epochs_of(stage, training, _trained(stage, views)))

    stages = [
        stage.model_copy(update={"epochs": length(stage), "steps": None, "optimizer": optimizer(stage)})
        for stage in experiment.stages
    ]
    return experiment.model_copy(update={"method": NAME, "stages": stages})
