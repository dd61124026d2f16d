"""What methods are held against: real images alone, and real images alone for as many steps as the costliest method.

Synthetic images mean more images, and more images mean more gradient steps in the same number of epochs. So a method
with synthetic images is also compared with plain training that shows as many images, all of them real: what it gains
over that is not the longer training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterpoise.config import Experiment, Optimizer, Stage
from counterpoise.config.training import Step
from counterpoise.storage.view import ImageView
from counterpoise.training.loading.stage_dataset import epoch_size, epochs_of
from counterpoise.workflow.suite import Suite

NAME = "control"


@dataclass(frozen=True)
class EqualComputeBaseline:
    """The equal-compute control.

    Attributes:
        experiments: One for each seed, of the method ``control``.
        of: The method that shows most images in training.
        shown: How many it shows.
        base: The method that is trained longer.
        epochs: How long, all stages together.
    """

    experiments: list[Experiment]
    of: str
    shown: int
    base: str
    epochs: int

    @property
    def method(self) -> str:
        """The control's name among the methods."""
        return NAME


def images_shown(experiment: Experiment, views: Mapping[str, ImageView]) -> int:
    """How many images training shows in all stages together, repeats counted: gradient steps × batch size.

    Deep feature reweighting has no epochs, and shows none.

    Args:
        views: Everything that stages train on: ``real``, ``validation`` and the plans'.
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
        views: By method, everything that its stages train on: ``real``, ``validation`` and its plans'.

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
    """The method ``base`` with its epochs scaled up (rounded up) to what the costliest method shows.

    Args:
        experiments: Among them those of ``base``.
        base: A method that trains on real images alone.
        shown: From :func:`images_shown`, for each method.
        views: What the stages of ``base`` train on.

    Returns:
        None if ``base`` itself shows as many as any other.
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
        """A step schedule's milestones are epochs, too."""
        found = stage.optimizer or training.optimizer
        if not isinstance(found.schedule, Step):
            return stage.optimizer
        milestones = [scaled(epoch) for epoch in found.schedule.milestones]
        return found.model_copy(update={"schedule": found.schedule.model_copy(update={"milestones": milestones})})

    def length(stage: Stage) -> int:
        return scaled(epochs_of(stage, training, _trained(stage, views)))

    stages = [
        stage.model_copy(update={"epochs": length(stage), "steps": None, "optimizer": optimizer(stage)})
        for stage in experiment.stages
    ]
    return experiment.model_copy(update={"method": NAME, "stages": stages})
