"""Stages, and what they share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from counterpoise.config.base import NonNegativeInt, Section
from counterpoise.config.synthesis import Workers


class Objective(Section):
    """What is minimised."""

    name: Literal["erm", "group_dro"] = "erm"
    step_size: PositiveFloat = 0.01  # group_dro


class Optimizer(Section):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd
    schedule: Literal["constant", "cosine"] = "constant"


class Stage(Section):
    """One fit: on which data, with which objective, for how long, from where."""

    name: str
    data: list[str] = Field(min_length=1)  # views to concatenate: "real", or names of plans
    start: str | None = None  # an earlier stage's name, or "scratch"; by default the stage before
    objective: Objective = Objective()
    sampling: Literal["uniform", "group_balanced"] = "uniform"
    groups: Literal["cell", "cell_source"] = "cell"  # what objective and sampling call a group
    epochs: PositiveInt | None = None  # by default training.epochs
    optimizer: Optimizer | None = None  # by default training.optimizer
    batch_norm: Literal["train", "frozen"] = "train"


class Training(Section):
    """What all stages share."""

    backbone: str = "small_cnn"  # small_cnn, or a torchvision classification model by name
    pretrained: bool = False  # torchvision's default weights
    image_size: PositiveInt = 32  # images are resized to this many pixels a side
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 128  # over all workers
    optimizer: Optimizer = Optimizer()
    augmentation: list[Literal["flip", "crop"]] = []
    select_by: Literal["worst_group_accuracy", "balanced_accuracy", "accuracy", "last"] = "worst_group_accuracy"
    num_workers: PositiveInt = 1  # Ray Train workers of one fit
    resources: Workers = Workers(num_cpus=1.0)  # of each worker; resources.workers: fits at once
    max_failures: NonNegativeInt = 2
